"""A script that checks itself on the machine it runs on: pass or fail for each of its steps."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class StepFailed(Exception):
    """What a step found wrong."""


@dataclass
class SelfCheck:
    """Steps with their outcome, and what was measured."""

    steps: dict[str, str] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)

    def step(self, name: str, run: Callable[[], str]) -> bool:
        """Run a step and print what became of it. run() returns what to say; whatever it raises is a failure."""
        try:
            said, passed = run(), True
        except Exception as error:
            said, passed = f"{type(error).__name__}: {error}", False
            if not isinstance(error, StepFailed):
                traceback.print_exc()
        self.steps[name] = f"{'pass' if passed else 'FAIL'}  {said}"
        print(f"{name:<11} {self.steps[name]}", flush=True)
        return passed

    @property
    def passed(self) -> bool:
        return all(said.startswith("pass") for said in self.steps.values())
