"""The attributes of items: columns with kinds, which rules filter by, of the columns of an items file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from genrec.catalog import KINDS, Column, Columns
from genrec.catalog.kinds import MAX_ATTRIBUTES, check_kinds
from genrec.errors import DataError
from genrec.live.arrow_columns import IS_NO, as_column, kind_of
from genrec_builders.data.checks import short
from genrec_builders.data.found import Found


def attribute_columns(
    path: Path,
    table: pa.Table,
    names: Sequence[str],
    item_ids: list[str],
    kinds: Mapping[str, str],
    found: Found,
    stated: Mapping[str, str] = MappingProxyType({}),
) -> Columns:
    """Columns of those of `names` that attributes can be made of; each of the others is noted in `found`.

    kinds: that are asked for, by name; a column has the kind that the file has `stated` otherwise, or that of its type.
    Raises DataError for what is asked for and cannot be.
    """
    require_known(path, names, kinds)
    columns: dict[str, Column] = {}
    for name in [*(name for name in names if name in kinds), *(name for name in names if name not in kinds)]:
        kind = kinds.get(name) or stated.get(name) or kind_of(table.column(name).type)
        if kind is None:
            continue
        problem = ""
        try:
            check_kinds({name: kind})
            column, bad = as_column(table.column(name), kind)
        except (TypeError, ValueError, pa.ArrowException) as error:
            problem = f"column {name!r}: {error}"
        else:
            if bad.any():
                at = int(bad.argmax())
                value = short(table.column(name)[at].as_py())
                problem = f"item {item_ids[at]!r}: attribute {name!r} is {value}, which is {IS_NO[kind]}"
            elif len(columns) == MAX_ATTRIBUTES:
                problem = f"attribute {name!r} is one more than the {MAX_ATTRIBUTES} that there may be"
        if not problem:
            columns[name] = column
        elif name in kinds:
            raise DataError(f"{path}: {problem}; give another --attribute-type, or change the column")
        else:
            found.left_out.append(f"column {name!r} of {path.name} in rules: {problem}")
    return Columns({name: columns[name] for name in names if name in columns}, table.num_rows)


def require_known(path: Path, names: Sequence[str], kinds: Mapping[str, str]) -> None:
    """Raises DataError for kinds of columns that there are not, and kinds that there are not."""
    for name, kind in kinds.items():
        if name not in names:
            raise DataError(
                f"{path}: --attribute-type names {name!r}, which is no attribute; the attributes are "
                f"{', '.join(names) or 'none'}"
            )
        if kind not in KINDS:
            raise DataError(f"{path}: --attribute-type {name}={kind}: the kinds are {', '.join(KINDS)}")


def arrow_column(column: Column) -> pa.Array:
    """A column as a file keeps it, with the type that gives its kind again."""
    types = {"number": pa.float64(), "boolean": pa.bool_(), "timestamp": pa.timestamp("us", "UTC")}
    return pa.array(column.tolist(), types.get(column.kind, pa.string() if column.offsets is None else _LIST))


_LIST = pa.list_(pa.string())
