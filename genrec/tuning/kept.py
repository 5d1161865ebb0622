"""What was measured of a bundle on a machine, kept for the next server of both."""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from genrec import __version__
from genrec.bundle import MANIFEST, Bundle, sha256_of
from genrec.reporting.machine import Machine, Section, processor_line, this_machine
from genrec.tuning.choices import Measured, Wanted


class Tuned(Section):
    """Measurements of a bundle. bundle: its version and the checksum of its manifest, which has those of all files.

    cores: processors that the choices share. machine: where it was measured; on another one nothing is known.
    """

    bundle: str
    machine: Machine
    cores: int
    created: str
    measured: list[Measured]

    @classmethod
    def now(cls, bundle: Path, cores: int, measured: Sequence[Measured]) -> Tuned:
        """What was just measured on this machine. What is kept of other choices stays behind it."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        older, new = cls.load(bundle, cores), {one.choice for one in measured}
        rest = [one for one in older.measured if one.choice not in new] if older else []
        everything = [*measured, *rest]
        return cls(bundle=_identity(bundle), machine=this_machine(), cores=cores, created=now, measured=everything)

    def of(self, wanted: Wanted) -> list[Measured]:
        """The measurements of what is wanted."""
        return [one for one in self.measured if wanted.allows(one.choice)]

    def save(self) -> Path:
        """Write it where `load` finds it; gives the file."""
        path = _path(self.bundle, self.machine, self.cores)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.write_text(self.model_dump_json(indent=1) + "\n")
        unfinished.rename(path)
        return path

    @classmethod
    def load(cls, bundle: Path, cores: int) -> Tuned | None:
        """What is kept of this bundle with so many processors of this machine, None if there is nothing.

        Raises ValueError for a file that cannot be used.
        """
        path = _path(_identity(bundle), this_machine(), cores)
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValidationError as error:
            raise ValueError(f"{path}: is not what `genrec tune` writes; remove it, and measure again") from error


def _path(bundle: str, machine: Machine, cores: int) -> Path:
    """Of a bundle, and of a machine with its libraries: what is measured of one says nothing of another."""
    # Processors with and without AMX may have one name.
    known = bundle, cores, machine.model_dump_json(), processor_line("flags"), __version__
    name = hashlib.sha256(repr(known).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "genrec" / "tuned" / f"{bundle.partition(' ')[0]}-{name}.json"


def _identity(bundle: Path) -> str:
    return f"{Bundle(bundle).manifest.bundle_version} {sha256_of(bundle / MANIFEST)}"
