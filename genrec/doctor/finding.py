"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(str, Enum):
    """warning: it works, and may not do so for long, or not as well as it could. wrong: it does not work."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """subject: machine, bundle, server or store. name: what of it. found: in words. todo: what to do, "" if nothing."""

    subject: str
    name: str
    verdict: Verdict
    found: str
    todo: str = ""


def judged(subject: str, name: str, found: str, wrong: bool | str = "", warning: bool | str = "") -> Finding:
    """A finding. wrong, warning: what to do, if it is that; wrong counts first."""
    if wrong:
        return Finding(subject, name, Verdict.WRONG, found, str(wrong))
    return Finding(subject, name, Verdict.WARNING if warning else Verdict.OK, found, str(warning or ""))
