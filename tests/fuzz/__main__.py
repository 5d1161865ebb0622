"""`python -m tests.fuzz`: every target in this process, in turn; or with --server, requests to a real one.

Exit status: 0 without a finding, 1 with one. Each finding is printed with the seed that repeats it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.runner import Result, Target, run

ROOMS = ("requests", "front", "client", "bundles", "catalogs", "knowledge")
AMOUNTS = {"short": 6_000, "full": 1_000_000}


def all_targets() -> list[Target]:
    """Those of every room."""
    rooms = (importlib.import_module(f"tests.fuzz.{room}") for room in ROOMS)
    return [target for room in rooms for target in room.TARGETS]


def amount(word: str) -> int:
    """A number of inputs, or `short` or `full`."""
    return AMOUNTS[word] if word in AMOUNTS else int(word)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=amount, default="short", help="in all: a number, or " + " or ".join(AMOUNTS))
    parser.add_argument("--seconds", type=float, default=7200.0, help="at most, in all (default: %(default)s)")
    parser.add_argument("--base", default="0", help="of the seeds: others make other inputs (default: %(default)s)")
    parser.add_argument("--target", action="append", help="only this one; again for more")
    parser.add_argument("--seed", action="append", help="only this input of one target, to repeat it")
    parser.add_argument(
        "--server", type=Path, metavar="BUNDLE", help="send requests to a server of this bundle instead"
    )
    parser.add_argument("--knowledge", type=Path, metavar="FOLDER", help="have that server write texts, too")
    parser.add_argument("--guided", action="store_true", help="one target's inputs guided by coverage, with atheris")
    given = parser.parse_args(words)
    if given.server is not None:
        from tests.fuzz.served import fuzz_server

        inputs = given.inputs if given.inputs not in AMOUNTS.values() else given.inputs // 10
        return report([fuzz_server(given.server, given.knowledge, inputs, given.seconds, given.base)])
    if given.guided:
        import atheris

        with atheris.instrument_imports(include=["genrec", "genrec_client"]):
            every = all_targets()
    else:
        every = all_targets()
    targets = [target for target in every if not given.target or target.name in given.target]
    if not targets or ((given.seed or given.guided) and len(targets) > 1):
        parser.error("--seed and --guided go with one --target of " + ", ".join(one.name for one in every))
    if given.guided:
        from tests.fuzz.guided import guide

        with tempfile.TemporaryDirectory(prefix="genrec-fuzz-") as folder:
            guide(targets[0], Path(folder), given.inputs, given.seconds)
    return report(run_all(targets, given.inputs, given.seconds, given.base, given.seed))


def run_all(targets: list[Target], inputs: int, seconds: float, base: str, seeds: list[str] | None) -> list[Result]:
    """Every target that can run here, each with its share of the inputs and of the time."""
    share = sum(target.share for target in targets if not target.needs)
    results, left, ends = [], share, time.monotonic() + seconds
    memory = Path("/dev/shm")  # files are written again and again
    for target in targets:
        if target.needs:
            print(f"{target.name:<20} left out: {target.needs}", flush=True)
            continue
        part = target.share / share
        longest = max(1.0, (ends - time.monotonic()) * target.share / left)
        left -= target.share
        with tempfile.TemporaryDirectory(prefix="genrec-fuzz-", dir=memory if memory.is_dir() else None) as folder:
            results.append(run(target, Path(folder), max(10, round(inputs * part)), longest, base, seeds))
        print("\n".join(results[-1].lines()), flush=True)
    return results


def report(results: Sequence[Result]) -> int:
    """The last line, and the exit status."""
    inputs, found = (sum(numbers) for numbers in zip(*((r.inputs, r.findings.total()) for r in results), strict=True))
    seconds = sum(result.seconds for result in results)
    print(f"{inputs:,} inputs in {seconds:,.0f} s, {found:,} findings")
    return 1 if found else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # without what libraries do at the end: it is nothing that is tested here
