"""What a test needs of the machine and may not find there."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

from genrec.engines.onnx import multiplies_int8
from genrec.engines.openvino import runs_here

needs_avx512 = pytest.mark.skipif(not runs_here(), reason="this processor has no AVX-512, or it is forbidden")
needs_vnni = pytest.mark.skipif(not multiplies_int8(), reason="this processor has no VNNI")
OPENVINO = pytest.param("openvino", marks=needs_avx512)  # the engine, where it runs


def all_required() -> bool:
    """Whether nothing may be missing, as in CI."""
    return os.environ.get("GENREC_REQUIRE_ALL") == "1"


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it with GENREC_REQUIRE_ALL=1.

    what: what is missing and how to get it. The summary shows it.
    """
    if all_required():
        pytest.fail(f"{what} (GENREC_REQUIRE_ALL=1: nothing may be missing)", pytrace=False)
    pytest.skip(what)
