"""Files appear whole or not at all, and hold what was given."""

import errno
import os
import stat
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparse_ops.deploy.files import DTYPES, atomic_write, save_safetensors, write_bytes
from sparse_ops.deploy.reading import safetensors_header
from tests import NO_TORCH


class Interrupted(BaseException):
    """As KeyboardInterrupt: not an Exception."""


@pytest.mark.parametrize("error", [OSError, Interrupted])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "result.bin"
    write_bytes(path, b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"half of the new")
        file.flush()
        raise error
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["result.bin"]


def test_the_file_is_not_there_before_it_is_whole(tmp_path):
    path = tmp_path / "result.bin"
    with atomic_write(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half" and os.listdir(tmp_path) == ["result.bin"]


def test_an_existing_file_is_replaced_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "result.bin"
    for data in (b"a longer first version", b"second", b""):
        write_bytes(path, data)
        assert path.read_bytes() == data


def test_a_full_disk_names_the_file(tmp_path):
    """Which is not that of the temporary file, and not no name at all."""
    path = tmp_path / "result.bin"
    for named in (False, True):
        with pytest.raises(OSError) as caught, atomic_write(path):
            raise OSError(errno.ENOSPC, "No space left on device", *(map(str, tmp_path.iterdir()) if named else ()))
        assert str(caught.value) == f"[Errno {errno.ENOSPC}] No space left on device: {str(path)!r}"
    assert not any(tmp_path.iterdir())


LIMITED = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
import sys
from sparse_ops.deploy.files import write_bytes
try:
    write_bytes(sys.argv[1], b"x" * 1000)
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of the size of files")
def test_a_write_that_the_system_refuses_names_the_file(tmp_path):
    path = tmp_path / "result.bin"
    done = subprocess.run([sys.executable, "-c", NO_TORCH + LIMITED, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"[Errno {errno.EFBIG}] File too large: {str(path)!r}\n" and not any(tmp_path.iterdir())


def test_permissions_follow_the_umask(tmp_path):
    script = "import os, sys; from sparse_ops.deploy.files import write_bytes; os.umask(0o027); write_bytes(sys.argv[1], b'x')"
    path = tmp_path / "result.bin"
    subprocess.run([sys.executable, "-c", NO_TORCH + script, path], check=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_places_where_no_file_can_be(tmp_path):
    with pytest.raises(ValueError, match=r"path: expected a file, given the folder"):
        write_bytes(tmp_path, b"")
    write_bytes(tmp_path / "file", b"")
    with pytest.raises(ValueError, match=r"path: expected a folder at .*file"):
        write_bytes(tmp_path / "file" / "result.bin", b"")
    with pytest.raises(ValueError, match=r"path: expected a folder at .*deeper"):
        write_bytes(tmp_path / "file" / "deeper" / "result.bin", b"")


def read(path):
    with safetensors.safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        hnp.arrays(
            st.sampled_from([name for name in DTYPES if name != "bfloat16"]).map(np.dtype),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        ),
        max_size=5,
    ),
    st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=20), min_size=1, max_size=3),
)
def test_safetensors_hold_what_was_given(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    save_safetensors(path, tensors, metadata)
    found, found_metadata = read(path)
    assert found.keys() == tensors.keys() and found_metadata == metadata
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_any_memory_order(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tensors = {"t": array.T, "strided": array[:, ::2], "big": array.astype(">f4"), "broadcast": np.broadcast_to(1.0, 3)}
    save_safetensors(tmp_path / "x.safetensors", tensors)
    found, _ = read(tmp_path / "x.safetensors")
    for name, expected in tensors.items():
        np.testing.assert_array_equal(found[name], expected)


def test_bfloat16(tmp_path):
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    values = np.float32([[1, -2.5, 3e38], [0, np.inf, 0.1]]).astype(ml_dtypes.bfloat16)
    save_safetensors(tmp_path / "x.safetensors", {"x": values, "y": np.float64([1])})
    found = load_file(tmp_path / "x.safetensors")["x"]
    assert found.dtype == torch.bfloat16
    np.testing.assert_array_equal(found.float().numpy(), values.astype(np.float32))


def test_equal_input_gives_equal_bytes(tmp_path):
    tensors = {"b": np.ones(3, np.float32), "a": np.ones(2, np.uint8), "c": np.ones(1)}
    metadata = {name: name for name in "qwerty"}
    save_safetensors(tmp_path / "1", tensors, metadata)
    save_safetensors(tmp_path / "2", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize(
    ("tensors", "metadata", "says"),
    [
        ({"x": [1.0]}, None, r"tensors\['x'\]: expected a numpy array, given list"),
        ({"x": np.array([None])}, None, r"tensors\['x'\]: expected one of bool, .*, given dtype object"),
        ({"x": np.array(["a"])}, None, "given dtype <U1"),
        ({"x": np.ones(1, np.complex64)}, None, "given dtype complex64"),
        ({"x": np.zeros(1, [("a", "i4")])}, None, "given dtype"),
        ({1: np.ones(1)}, None, "tensors: expected strings .* given 1"),
        ({"__metadata__": np.ones(1)}, None, "tensors: expected strings other than '__metadata__'"),
        ({}, {"steps": 12}, "metadata: expected strings, given 'steps': 12"),
    ],
)
def test_what_safetensors_cannot_hold(tmp_path, tensors, metadata, says):
    with pytest.raises(ValueError, match=says):
        save_safetensors(tmp_path / "x.safetensors", tensors, metadata)
    assert os.listdir(tmp_path) == []


def test_arrays_of_whole_cache_lines_begin_at_one(tmp_path):
    tensors = {"a": np.ones(3, np.float32), "b": np.ones((4, 16), np.float32), "c": np.ones(1), "d": np.ones(64, np.uint8)}
    save_safetensors(path := tmp_path / "x.safetensors", tensors)
    header, start = safetensors_header(path)
    assert {name for name, entry in header.items() if (start + entry["data_offsets"][0]) % 64 == 0} >= {"b", "d"}
    assert all((start + header[name]["data_offsets"][0]) % tensors[name].itemsize == 0 for name in tensors)
