"""What fuzzing found in bundles and other files of arrays: each is refused in words, and nothing outside is read."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrec.arrays import load_archive, load_array
from genrec.bundle import MANIFEST, Bundle, BundleError
from genrec.catalog.published import Record
from genrec.errors import shown
from genrec.json_files import MOST_JSON_BYTES, read_json
from tests.unit.bundle.conftest import seal_again


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle(folder).check()
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/passwd", "catalog/../../outside", "", "a//b", "./a", "a\0", "a\n", "x" * 300, "catalog/"],
)
def test_a_manifest_names_no_file_outside(hollow_copy: Path, name: str) -> None:
    manifest = json.loads((hollow_copy / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": 6, "sha256": "0" * 64}
    (hollow_copy / MANIFEST).write_text(json.dumps(manifest))
    assert "is no path of a file in the bundle, such as catalog/sids.npy" in refusal(hollow_copy)


def link(file: Path, target: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to(target)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda at: link(at / "catalog/sids.npy", at.parent / "secret"), "catalog/sids.npy: is a link that leads out"),
        (lambda at: link(at / "catalog/sids.npy", Path("/dev/zero")), "catalog/sids.npy: is a link that leads out"),
        (
            lambda at: link(at / "catalog/sids.npy", at / "catalog/sids.npy"),
            "catalog/sids.npy: is a link that leads out",
        ),
        (lambda at: link(at / "catalog/more", at.parent), "catalog/more: is not in the manifest"),
        (lambda at: link(at / "catalog/attributes", at.parent), "catalog/attributes: is not in the manifest"),
        (lambda at: (at / "quantizer/more.npy").write_bytes(b"x"), "quantizer/more.npy: is not in the manifest"),
        (
            lambda at: (at / "engines/onnx/model.data").write_bytes(b"x"),
            "engines/onnx/model.data: is not in the manifest",
        ),
    ],
)
def test_links_that_lead_out_and_files_beside_the_manifest(
    hollow_copy: Path, change: Callable[[Path], Any], says: str
) -> None:
    (hollow_copy.parent / "secret").write_bytes((hollow_copy / "catalog/sids.npy").read_bytes())
    change(hollow_copy)
    assert says in refusal(hollow_copy)


def test_a_link_within_the_bundle_is_taken_and_so_is_one_to_it(hollow_copy: Path) -> None:
    (hollow_copy / "catalog/sids.npy").rename(hollow_copy / "aside.npy")
    (hollow_copy / "catalog/sids.npy").symlink_to("../aside.npy")
    (hollow_copy.parent / "link").symlink_to(hollow_copy)
    Bundle(hollow_copy.parent / "link").check()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "config.json",
            b'{"model_type": "qwen3", "num_hidden_layers": 999999999}',
            "num_hidden_layers is 999999999; at most",
        ),
        (
            "config.json",
            b'{"model_type": "qwen3", "hidden_size": "a"}',
            "hidden_size is 'a'; it must be a whole number",
        ),
        ("config.json", b"[" * 100_000, "config.json: cannot be used: its lists and objects are nested too deep"),
        ("model.safetensors", b"\xff\xff\xff\xff\0\0\0\0{}", "model.safetensors: cannot be read: it is cut short"),
    ],
)
def test_a_checkpoint_that_would_take_all_memory(hollow_copy: Path, name: str, content: bytes, says: str) -> None:
    if name == "config.json" and content.startswith(b"{"):
        said = json.loads((hollow_copy / "checkpoint/config.json").read_text()) | json.loads(content)
        content = json.dumps(said).encode()
    (hollow_copy / "checkpoint" / name).write_bytes(content)
    seal_again(hollow_copy)
    assert says in refusal(hollow_copy)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("id_rows", 65_536, "id_rows.npy: has rows outside of the 400 items"),
        ("sids", 99, "sids.npy: has codes outside of"),
    ],
)
def test_a_catalogue_that_leads_outside_of_itself(hollow_copy: Path, name: str, value: int, says: str) -> None:
    path = hollow_copy / "catalog" / f"{name}.npy"
    array = np.load(path)
    array[np.nonzero(array == array.max())] = value
    np.save(path, array)
    seal_again(hollow_copy)
    assert f"catalog/{says}" in refusal(hollow_copy)


def test_json_that_is_too_deep_or_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deep"):
        read_json(path)
    with path.open("wb") as file:
        file.truncate(MOST_JSON_BYTES + 1)  # takes no room
    with pytest.raises(ValueError, match=f"has {MOST_JSON_BYTES + 1} bytes; at most {MOST_JSON_BYTES} are read"):
        read_json(path)


def npy(shape: str, dtype: str = "'<i4'") -> bytes:
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(40)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "its header cannot be read"),
        (b"PK\3\4" + bytes(40), "its header cannot be read"),
        (npy("(1099511627776,)"), "its header tells of 4398046511104 bytes"),
        (npy("(4294967296, 4294967296, 4294967296)"), "and 40 are there"),
        (npy("(-1,)"), "its header tells of -4 bytes"),
        (npy("(11,)"), "its header tells of 44 bytes, shape (11,), and 40 are there"),
        (npy("(9,)"), "its header tells of 36 bytes, shape (9,), and 40 are there"),
        (npy("(5,)", "'|O'"), "it holds object, which is no plain type"),
        (npy("(10,)", "[('a', '<i4')]"), "which is no plain type"),
        (npy("(" * 5000), "its header cannot be read"),
    ],
)  # fmt: skip
def test_an_array_that_is_not_what_its_header_says(data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        load_array(path, np.int32, (None,))
    assert str(caught.value).startswith(f"{path}: cannot be read as an array: ") and says in str(caught.value)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(ValueError) as caught:
        load_archive(tmp_path / "a.npz", "pool")
    assert says in str(caught.value)


def test_an_archive_never_becomes_larger_than_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(1 << 20))
    with pytest.raises(ValueError, match=r"a.npz: cannot be read as a pool: is compressed; write it by numpy.savez"):
        load_archive(path, "pool")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", npy("(10,)"))
        (one,) = archive.infolist()
        archive.filelist += [one] * 9  # all of them the same bytes
    path.write_bytes(file.getvalue())
    with pytest.raises(ValueError, match=r"says that it holds \d+ bytes, and has \d+"):
        load_archive(path, "pool")


@pytest.mark.parametrize("base", ["../../outside", "/etc", "", "1", 5, None, "1.0/../../x"])
def test_the_record_of_a_version_names_no_folder_outside(base: Any, tmp_path: Path) -> None:
    record = Record(1, "1.0", "", 1, 1.0, 1.0)
    record.save(tmp_path)
    assert Record.load(tmp_path) == record
    told = json.loads((tmp_path / "version.json").read_text()) | {"base": base}
    (tmp_path / "version.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"version.json: cannot be read as the record"):
        Record.load(tmp_path)


def test_a_value_in_a_message_is_short() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert [shown(one) for one in ("a", "b" * 99, 10**5000, deep)] == ["'a'", f"'{'b' * 76}...", "a int", "a list"]
