"""How semantic IDs are written: as numbers, `3-7-4`, `3 7 4`, `[3, 7, 4]`, or as tokens, `<a_3><b_7><c_4>`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrec.errors import DataError
from genrec_builders.data.checks import common_length, short

# <a_12>, <s_a_12>, <item_a_12>, <|a_12|>: whatever comes before the code names the level.
_TOKEN = r"^<\|?(?P<level>[A-Za-z][A-Za-z0-9_]*)_(?P<code>-?[0-9]{1,18})\|?>$"
_NUMBER = r"^-?[0-9]{1,18}$"
# Around an ID, as OneRec writes it: <|sid_begin|><s_a_3><s_b_7><s_c_4><|sid_end|>.
_AROUND = r"<\|?[A-Za-z_]*(begin|start|end)\|?>"
EXAMPLES = "'3-7-4', '3 7 4', '[3, 7, 4]' or '<a_3><b_7><c_4>'"


def parse_sids(path: Path, texts: pa.Array, item_ids: list[str], what: str) -> np.ndarray:
    """Codes int64 [n, L] of the semantic IDs `texts`, string or large_string [n] without nulls.

    what: of what each item needs as many, for messages. Raises DataError that names the item and the value.
    """
    plain = pc.replace_substring_regex(texts, _AROUND, " ")
    as_tokens = pc.match_substring(plain, "<")[0].as_py()
    if as_tokens:
        plain = pc.replace_substring(plain, "><", "> <")
    else:
        plain = pc.replace_substring_regex(plain, r"([0-9])-", r"\1 ")
    codes = pc.split_pattern_regex(pc.utf8_trim(plain, "[](){}'\"\n\r\t "), r"[\s,;'\"]+")
    lengths = pc.list_value_length(codes).to_numpy(zero_copy_only=False)
    flat, owner = codes.flatten(), np.repeat(np.arange(len(lengths)), lengths)
    good = pc.match_substring_regex(flat, _TOKEN if as_tokens else _NUMBER).to_numpy(zero_copy_only=False)
    if not good.all():
        at = int(np.argmin(good))
        given, whole = flat[at].as_py(), texts[int(owner[at])].as_py()
        has = (f"the code {short(given)}" + f" in {short(whole)}" * (whole != given)) if given else "no codes"
        expected = "the form <a_128>" if as_tokens else f"a semantic ID such as {EXAMPLES}"
        raise DataError(f"{path}: item {item_ids[int(owner[at])]!r} has {has}; expected {expected}")
    levels = common_length(path, lengths, item_ids, what)
    if as_tokens:
        return _of_tokens(path, flat, item_ids, levels)
    return flat.cast(pa.int64()).to_numpy(zero_copy_only=False).reshape(-1, levels)


def _of_tokens(path: Path, tokens: pa.Array, item_ids: list[str], levels: int) -> np.ndarray:
    """int64 [n, L] of the tokens of all items one after another; level l must carry the same name everywhere."""
    parsed = pc.extract_regex(tokens, _TOKEN)
    names = pc.struct_field(parsed, "level").to_numpy(zero_copy_only=False).reshape(-1, levels)
    for level in range(levels):
        wrong = np.flatnonzero(names[:, level] != names[0, level])
        if wrong.size or names[0, level] in names[0, :level]:
            at = int(wrong[0]) if wrong.size else 0
            raise DataError(
                f"{path}: item {item_ids[at]!r} has the level letter {names[at, level]!r} in place {level}; every "
                f"item must give its levels once each and in one order ({item_ids[0]!r} gives {names[0].tolist()})"
            )
    codes = pc.struct_field(parsed, "code").cast(pa.int64())
    return codes.to_numpy(zero_copy_only=False).reshape(-1, levels)
