"""What one request may ask for."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Count = Annotated[int, Field(ge=1)]


class Limits(BaseModel):
    """What one request may ask for. Sizes count items, or bytes where the name says so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_k: _Count = 50
    default_top_k: _Count = 10
    exclude: _Count = 1000
    history: _Count = 10_000
    query_bytes: _Count = 4096
