"""Runs unit tests under the kernels of other processors, as far as this one has them: `make test-kernels`.

python -m tests.kernels [full|short]

PyTorch, oneDNN, MKL, OpenBLAS and NumPy choose kernels by the processor, and by environment variables a set for an
older one. ONNX Runtime's own kernels (MLAS) have no such switch: they run as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Tests of what computes no scores are left out.
NOT_CONCERNED = ("cli", "client", "serving", "test_docs.py", "test_suite.py")
SHORT = ("model", "engines", "builders/training")
# NumPy's names for what came after SSE.
LATER_THAN_SSE = "AVX F16C FMA3 AVX2 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"


@dataclass(frozen=True)
class Setting:
    """needs: a flag of /proc/cpuinfo without which these kernels do not run. aten, onednn, mkl, openblas: their names.

    threads: of all of them.
    """

    needs: str
    aten: str
    onednn: str
    mkl: str
    openblas: str
    threads: int
    numpy_without: str = ""

    def environment(self) -> dict[str, str]:
        chosen = {
            "ATEN_CPU_CAPABILITY": self.aten,
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "MKL_ENABLE_INSTRUCTIONS": self.mkl,
            "OPENBLAS_CORETYPE": self.openblas,
            "OMP_NUM_THREADS": str(self.threads),
            "OMP_WAIT_POLICY": "passive",  # models this small would spend their time on busy waiting
        }
        if self.numpy_without:
            chosen["NPY_DISABLE_CPU_FEATURES"] = self.numpy_without
        return os.environ | chosen


SETTINGS = {
    "SSE4, 1 thread": Setting("sse4_2", "default", "SSE41", "SSE4_2", "Nehalem", 1, LATER_THAN_SSE),
    "AVX2, 2 threads": Setting(
        "avx2", "avx2", "AVX2", "AVX2", "Haswell", 2, LATER_THAN_SSE[LATER_THAN_SSE.index("AVX512F") :]
    ),
    "AVX-512, 1 thread": Setting("avx512f", "avx512", "AVX512_CORE", "AVX512", "SkylakeX", 1),
    "all of AVX-512, 2 threads": Setting("avx512f", "avx512", "ALL", "AVX512", "SkylakeX", 2),
}


def tests_of(form: str) -> list[str]:
    unit = ROOT / "tests" / "unit"
    if form == "short":
        return [str(unit / name) for name in SHORT]
    return [str(unit), *(f"--ignore={unit / name}" for name in NOT_CONCERNED)]


def main(form: str = "full") -> int:
    """Run every setting of the form that this processor can; 1 if one fails."""
    if form not in ("full", "short"):
        sys.exit(f"{form!r} is neither full nor short")
    names = list(SETTINGS)
    if form == "short":
        del names[1:-1]
    flags = set(Path("/proc/cpuinfo").read_text().split())
    outcomes = {}
    for name in names:
        setting = SETTINGS[name]
        if setting.needs not in flags:
            outcomes[name] = f"left out: this processor has no {setting.needs}"
            continue
        print(f"--- {name}", flush=True)
        began = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests_of(form)]
        status = subprocess.run(command, cwd=ROOT, env=setting.environment()).returncode
        outcomes[name] = f"{'FAIL' if status else 'pass'} in {time.monotonic() - began:.0f} s"
    for name, outcome in outcomes.items():
        print(f"{name:28}{outcome}")
    return int(any(outcome.startswith("FAIL") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
