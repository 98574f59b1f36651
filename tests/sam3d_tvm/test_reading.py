"""What is refused before it is walked, unpacked or allocated: YAML, archives, arrays, splats, pictures."""

import io
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam3d_tvm import reading
from sam3d_tvm.checkpoint import Checkpoint
from sam3d_tvm.photo.images import load_image, load_mask
from sam3d_tvm.photo.pointmaps import load_pointmap
from sam3d_tvm.reading import check_ply, check_torch_zip, load_torch, npz_entries, open_clipped, read_npy, read_yaml
from sam3d_tvm.splat.files import load_splat
from tests.sam3d_tvm.fake_checkpoint import write_checkpoint

# 226 bytes, ten levels of aliases: 9 ** 10 values.
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + above] * 5)}]\n" for above, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "hf")


def refused(words: str, read, *arguments) -> None:
    """Within a second, in these words."""
    begin = time.process_time()
    with pytest.raises(ValueError, match=words):
        read(*arguments)
    assert time.process_time() - begin < 3


YAML = {
    "aliases of aliases": (BOMB, "at most 50,000 values, with aliases unfolded"),
    "an alias inside of itself": ("a: &a [*a]", "no alias inside of what it names, in line 1"),
    "deep lists": ("a: " + "[" * 100_000, "at most 64 levels"),
    "deep mappings": ("{a: " * 5000, "at most 64 levels"),
    "deep blocks": ("- " * 2000 + "a", "at most 64 levels"),
    "aliases that go deep": (
        "a: &a " + "[" * 40 + "1" + "]" * 40 + "\nb: " + "[" * 40 + "*a" + "]" * 40,
        "at most 64 levels, with aliases",
    ),
    "many values": ("a: [" + "0," * 60_000 + "]", "at most 50,000 values"),
    "many bytes": ("a: " + "x" * 300_000, "at most 262,144 bytes"),
    "a name twice": ("a: 1\nb: 2\na: 3", "every name once, given 'a' twice, in line 3"),
    "a name twice, deep": ("a: [{b: 1, b: 1}]", "every name once, given 'b' twice"),
    "a list as a name": ("? [a]\n: b", "expected names, given a list or mapping"),
    "a large integer": (f"a: {2**63}", "integers within int64"),
    "a long integer": ("a: " + "9" * 5000, "integers within int64"),
    "a long hexadecimal integer": ("a: 0x" + "f" * 5000, "integers within int64"),
    "an infinite number": ("a: .inf", "finite numbers"),
    "no number": ("a: !!int x", "not a YAML file"),
    "an empty number": ("a: !!float ''", "not a YAML file"),
    "code": ("a: !!python/object/apply:os.mkdir [ran]", "could not determine a constructor"),
    "a set": ("a: !!set {b}", "could not determine a constructor"),
    "a date": ("a: !!timestamp 2001-99-99", "could not determine a constructor"),
    "bytes": ("a: !!binary x", "could not determine a constructor"),
    "two documents": ("a: 1\n---\nb: 2", "not a YAML file"),
    "half a character": (r'a: "\ud800"', "whole characters, given half of one"),
    "zeros": ("a: \0", "not a YAML file"),
    "no text": (b"\xff\xff\xfe", "not a YAML file"),
    "an alias of nothing": ("a: *b", "not a YAML file"),
}


@pytest.mark.parametrize("kind", YAML)
def test_yaml_that_is_refused_at_once(tmp_path, kind):
    text, words = YAML[kind]
    (path := tmp_path / "x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(rf"x\.yaml: .*{words}", read_yaml, path)


def test_yaml_that_is_read(tmp_path):
    text = (
        "a: &a {b: 1, c: [1.5, true, ~, 'x', 2001-01-01, 1e-4]}\nd: *a\ne: {<<: *a, b: 2}\nf: 2026-11-28\n" + "g: " + "[" * 60
    )
    (path := tmp_path / "x.yaml").write_text(text + "]" * 60)
    found = read_yaml(path)
    assert found["d"] == found["a"] == {"b": 1, "c": [1.5, True, None, "x", "2001-01-01", "1e-4"]}
    assert found["e"] == {"b": 2, "c": found["a"]["c"]} and found["f"] == "2026-11-28"
    path.write_text("﻿a: é\n", encoding="utf-8")
    assert read_yaml(path) == {"a": "é"}


@pytest.mark.parametrize("file", ["pipeline.yaml", "ss_generator.yaml"])
def test_a_small_file_of_aliases_does_not_keep_a_checkpoint_busy(checkpoint, tmp_path, file):
    for path in checkpoint.iterdir():
        (tmp_path / path.name).symlink_to(path)
    text = (checkpoint / file).read_text()
    (tmp_path / file).unlink()
    (tmp_path / file).write_text(text + BOMB)
    refused(rf"{file}: not a YAML file: expected at most 50,000 values", Checkpoint, tmp_path)
    (tmp_path / file).write_text(text + "deep: " + "[" * 1000 + "]" * 1000)
    refused(rf"{file}: not a YAML file: expected at most 64 levels", Checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("ss_decoder.yaml", "num_res_blocks", 10**9),
        ("slat_decoder_gs.yaml", "num_blocks", 10**6),
        ("slat_decoder_gs.yaml", "model_channels", 2**40),
        ("slat_decoder_mesh.yaml", "resolution", 2**60),
        ("ss_decoder.yaml", "channels", [8] * 1000),
    ],
)
def test_sizes_that_no_model_has(checkpoint, tmp_path, file, name, value):
    import yaml

    for path in checkpoint.iterdir():
        (tmp_path / path.name).symlink_to(path)
    found = yaml.safe_load((checkpoint / file).read_text())
    (tmp_path / file).unlink()
    (tmp_path / file).write_text(yaml.safe_dump(found | {name: value}))
    refused(rf"{file}: .*{name}: expected at most", Checkpoint, tmp_path)


# Archives of torch.


def torch_file(path: Path, change) -> Path:
    """The entries of a file of torch, packed again."""
    torch.save({"a": torch.ones(1000)}, data := io.BytesIO())
    with zipfile.ZipFile(data) as file:
        entries = {entry.filename: file.read(entry) for entry in file.infolist()}
    options, method = change(entries) or {}, zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w") as file:
        for name, held in entries.items():
            file.writestr(zipfile.ZipInfo(name), held, options.get(name, method))
    return path


PICKLE = "archive/data.pkl"
ARCHIVES = {
    "compressed": (lambda entries: dict.fromkeys(entries, zipfile.ZIP_DEFLATED), "entries that are stored"),
    "a bomb": (
        lambda entries: entries.update({"archive/data/0": bytes(1 << 26)}) or {"archive/data/0": zipfile.ZIP_DEFLATED},
        "entries that are stored",
    ),
    "many entries": (lambda entries: entries.update({f"archive/{i}": b"" for i in range(200)}), "at most 100 entries"),
    "many names": (lambda entries: entries.update({PICKLE: b"\x80\2" + b"N" * 2000 + b"."}), "bytes of names"),
    "many steps": (lambda entries: entries.update({PICKLE: b"\x80\2" + b"N" * 900 + b"."}), "more than 800 steps"),
    "more numbers than bytes": (
        lambda entries: entries.update({PICKLE: entries[PICKLE].replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f")}),
        "as many numbers as the file has bytes",
    ),
    "other things": (lambda entries: entries.pop(PICKLE) and None, "a zip archive of .*: unpack it"),
    "a script": (lambda entries: entries.update({"archive/constants.pkl": b""}), "TorchScript archive, which holds code"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_that_are_refused_at_once(tmp_path, kind, monkeypatch):
    for name, value in {"ZIP_ENTRIES": 100, "PICKLE_BYTES": 1000, "PICKLE_OPCODES": 800}.items():
        monkeypatch.setattr(reading, name, value)
    change, words = ARCHIVES[kind]
    refused(rf"w\.ckpt: .*{words}", check_torch_zip, torch_file(tmp_path / "w.ckpt", change), "w.ckpt")
    check_torch_zip(torch_file(tmp_path / "w.ckpt", lambda entries: None), "w.ckpt")


def test_many_entries_of_one_name(tmp_path):
    entries = [f"{i}" for i in range(60_000)]
    with zipfile.ZipFile(path := tmp_path / "w.ckpt", "w") as file:
        for name in entries:
            file.writestr(zipfile.ZipInfo(name), b"")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"59999", b"12345"))
    refused(r"w\.ckpt: expected every name once in a zip file, given '12345' 2 times", check_torch_zip, path, "w.ckpt")


def test_a_directory_that_says_it_is_large_is_not_read(tmp_path):
    path = torch_file(tmp_path / "w.ckpt", lambda entries: None)
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\5\6")
    data[at + 12 : at + 16] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(data)
    refused(
        r"w\.ckpt: expected at most 100,000 entries in a zip file, listed in 33,554,432 bytes, given",
        check_torch_zip,
        path,
        "w.ckpt",
    )


def test_tensors_that_are_larger_than_their_file(tmp_path):
    torch.save({"a": [torch.ones(1).expand(10**12)]}, tmp_path / "w.pt")
    refused(
        r"w\.pt: expected tensors within the file of .* bytes, given torch.float32 \[1000000000000\]",
        load_torch,
        tmp_path / "w.pt",
        "w.pt",
    )


# Arrays.


def npy(header: str, data: bytes = bytes(24), version: int = 1) -> bytes:
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode("latin-1") + data


def described(descr: str = "'<f4'", shape: str = "(2, 3)", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


NPY = {
    "too large a shape": (
        npy(described(shape="(1000000, 1000000)")),
        r"its header says \[1000000, 1000000\] of float32, and 24 bytes",
    ),
    "overflow": (npy(described(shape="(4294967296, 4294967296, 4294967296)")), "its header says"),
    "negative": (npy(described(shape="(-1, 3)")), "a shape of integers of 0 or more"),
    "bools": (npy(described(shape="(True, 3)")), "a shape of integers"),
    "an expression": (npy(described(shape="(2**40,)")), "a header of names and values"),
    "code": (npy(described(shape="__import__('os').mkdir('ran')")), "a header of names and values"),
    "deep": (npy("(" * 2000), "a header of names and values"),
    "objects": (npy(described("'|O'")), "objects, which may be code and are not read"),
    "texts": (npy(described("'<U1000000000'")), "bools, integers or floats"),
    "records": (npy(described("[('a', '<f4')]")), "bools, integers or floats"),
    "a long header": (npy(described() + " " * 60_000), "a header of at most 4,096 bytes"),
    "a longer header": (
        npy(described(), version=2).replace(b"\x93NUMPY\2\0", b"\x93NUMPY\2\0\xff\xff\xff\xff", 1),
        "a header of at",
    ),
    "another name": (npy("{'descr': '<f4', 'shape': (2, 3)}"), "dtype, order and shape"),
    "something else": (b"P5 1 1 255\n", "expected a .npy file"),
    "nothing": (b"", "expected a .npy file"),
}


@pytest.mark.parametrize("kind", NPY)
def test_npy_files_that_are_refused_at_once(tmp_path, kind):
    data, words = NPY[kind]
    refused(rf"x\.npy: .*({words})", read_npy, io.BytesIO(data), len(data), "x.npy")
    (tmp_path / "x.npy").write_bytes(data)
    for read in (load_pointmap, load_mask):
        with pytest.raises(ValueError, match=r"x\.npy") as caught:
            read(tmp_path / "x.npy")
        assert "allow_pickle" not in str(caught.value) and "trust" not in str(caught.value)


@pytest.mark.parametrize(
    "array", [np.ones((2, 3)), np.zeros((0, 4), "i2"), np.array(True), np.asfortranarray(np.eye(3, 4, dtype=">f2"))]
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_files_that_are_read(array, version):
    np.lib.format.write_array(data := io.BytesIO(), array, version)
    data.seek(0)
    found = read_npy(data, len(data.getvalue()), "x.npy")
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


def test_npz_files_that_say_they_expand(tmp_path):
    np.savez_compressed(path := tmp_path / "x.npz", points=np.zeros((64, 64, 3)))
    assert [*npz_entries(path, "x.npz")] == ["points"]
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\1\2")
    data[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(data)
    refused(r"x\.npz: 'points.npy' expands to 4,294,967,294 bytes from", npz_entries, path, "x.npz")
    refused(r"x\.npz", load_pointmap, path)


# Splats.

VERTEX = "element vertex 1\nproperty float x\n"
PLY = {
    "many rows": ("element vertex 1000000000\nproperty float x\n", "holds 1,000,000,000 rows of 'vertex'"),
    "negative": ("element vertex -1\n", "a name and a number of rows"),
    "no properties": ("element vertex 999999999999\n", "properties of the element 'vertex', given none"),
    "rows of lists": (VERTEX + "element face 1000001\nproperty list uchar int v\n", "at most 1,000,000 rows with lists"),
    "a strange type": ("element vertex 1\nproperty quad x\n", "a type and a name of its own"),
    "a property twice": (VERTEX + "property float x\n", "a type and a name of its own"),
    "an element twice": (VERTEX + VERTEX, "every element of a .ply file once"),
    "a property of nothing": ("property float x\n", "a type and a name of its own"),
    "many lines": ("comment a\n" * 2000, "at most 1,000 lines"),
    "a long line": ("comment " + "a" * 100_000 + "\n", "up to end_header, given none within"),
}


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian"])
@pytest.mark.parametrize("kind", PLY)
def test_ply_files_that_are_refused_at_once(tmp_path, kind, order):
    lines, words = PLY[kind]
    (path := tmp_path / "x.ply").write_text(f"ply\nformat {order} 1.0\n{lines}end_header\n" + "0 " * 50)
    refused(rf"x\.ply: .*{words}", check_ply, path, "x.ply")
    refused(r"x\.ply", load_splat, path)


# Pictures.


@pytest.mark.parametrize("form", ["bmp", "gif", "ppm", "tiff"])
def test_pictures_that_say_they_are_large(tmp_path, form):
    """16384 pixels along each side, in a file of some bytes."""
    Image.new("RGB", (5, 7)).save(path := tmp_path / f"x.{form}")
    data = path.read_bytes()
    if form == "ppm":
        data = data.replace(b"5 7", b"16384 16384")
    elif form == "tiff":  # width and length are the first two tags
        Image.new("RGB", (5, 7)).save(path, compression="tiff_adobe_deflate")
        data = path.read_bytes()
        for tag in (256, 257):
            at = data.find(tag.to_bytes(2, "little") + b"\4\0\1\0\0\0")
            kind = b"\4\0" if at >= 0 else b"\3\0"
            at = data.find(tag.to_bytes(2, "little") + kind + b"\1\0\0\0")
            data = data[: at + 8] + (16384).to_bytes(4, "little") + data[at + 12 :]
    else:
        place, width = (18, 4) if form == "bmp" else (6, 2)
        side = (16384).to_bytes(width, "little")
        data = data[:place] + side + side + data[place + 2 * width :]
    path.write_bytes(data)
    refused(rf"x\.{form}.*: expected pixels that .* bytes can hold, given a header of 16384 x 16384", load_image, path)


def test_a_large_picture_of_one_colour_is_read(tmp_path):
    Image.new("1", (8192, 8192)).save(path := tmp_path / "x.png")
    assert path.stat().st_size < 20_000
    assert load_image(path).shape == (8192, 8192, 3)


def test_a_box_that_says_it_is_large_takes_no_memory(tmp_path):
    """Python allocates what it is asked to read."""
    Image.new("RGB", (5, 7)).save(path := tmp_path / "x.jp2")
    data = path.read_bytes()
    at = data.index(b"jp2h") - 4
    path.write_bytes(data[:at] + (1).to_bytes(4, "big") + b"jp2h" + (1 << 60).to_bytes(8, "big") + data[at + 8 :])
    with pytest.raises(ValueError, match=r"x\.jp2.*cannot read it") as caught:
        load_image(path)
    assert not isinstance(caught.value.__cause__, MemoryError)
    with open_clipped(path) as file:
        assert file.read(1 << 60) == path.read_bytes() and file.read() == b""
