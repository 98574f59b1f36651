"""Writing results: a file appears whole or not at all.

Everything is written to a temporary file in the same folder, flushed to disk and moved into place in one step, so that
neither a crash nor a full disk leaves half a file, and a reader of the old file is not disturbed.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

DTYPES = {  # numpy's (and ml_dtypes') name to the name in the file
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
ALIGNMENT = 64  # bytes: a cache line, and the widest vector


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file open for writing that becomes `path` when the block ends, and leaves no trace if it raises.

    Missing folders are made. ValueError if `path` is a folder, or if something on the way to it is none. OSError, which names
    `path`, where it cannot be written: on a full disk, or in a folder that is read-only.
    """
    path = _target(path)
    # Not tempfile: its files are private to the user, whatever the umask says.
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        file = os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666), "w+b")
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        # Writing names no file, and the rest of it the temporary one.
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all. ValueError as `atomic_write`."""
    with atomic_write(path) as file:
        file.write(data)


def save_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes named arrays, of any shape and memory order and a dtype of `DTYPES`, as a .safetensors file.

    Equal input gives equal bytes, in whatever order the names come. Raises ValueError for a name or a metadata entry
    that is not a string, a value that is not an array, an array of another dtype, and as `atomic_write`.
    """
    for name, array in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise ValueError(f"tensors: expected strings other than '__metadata__' as names, given {name!r}")
        if not isinstance(array, np.ndarray):
            raise ValueError(f"tensors[{name!r}]: expected a numpy array, given {type(array).__name__}")
        if array.dtype.newbyteorder("=").name not in DTYPES:
            raise ValueError(f"tensors[{name!r}]: expected one of {', '.join(DTYPES)}, given dtype {array.dtype}")
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"metadata: expected strings, given {key!r}: {value!r}")

    # Written here, not by safetensors.numpy.save, which puts metadata in an order that changes from run to run and
    # holds the file in memory. Whole cache lines first, so that packed weights begin at one; then wide types, so that every
    # array is aligned to its own width.
    names = sorted(tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT != 0, -tensors[name].dtype.itemsize, name))
    header: dict[str, dict] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in names:
        array = tensors[name]
        end = offset + array.nbytes
        dtype = DTYPES[array.dtype.newbyteorder("=").name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)  # arrays begin at a cache line, for those who map the file
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            file.write(_little_endian(tensors[name]))


def _little_endian(array: np.ndarray) -> memoryview:
    """The bytes of an array by rows; a copy only where its memory differs from that."""
    if array.dtype.kind != "V":  # bfloat16 has no byte order to numpy
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _target(path: str | os.PathLike) -> Path:
    """`path` with its folder made, or ValueError."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"path: expected a file, given the folder {str(path)!r}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"path: expected a folder at {str(path.parent)!r}, where a file is in the way") from None
    return path
