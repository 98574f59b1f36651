"""Arrays in files, .npy, .npz and those of torch, and what errors say of arrays."""

import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

MAX_SIDE = 16384  # pixels
ARRAYS = (".npy", ".npz", ".pt", ".pth")
MAX_EXPANSION, MAX_EXPANDED = 200, 64 << 20  # how many times its bytes a member of a .npz file may hold, beyond so many bytes


def array_kind(value) -> str:
    """Dtype and shape of an array, or the type of something else: for errors."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def check_sides(width: int, height: int, name: str) -> None:
    """ValueError for a picture without pixels, and one beyond `MAX_SIDE`."""
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError(f"{name}: expected sides of 1 to {MAX_SIDE} pixels, given {width} x {height}")


def check_is_file(path: str | os.PathLike) -> None:
    """ValueError for a pipe, a device or a folder, of which the first two may never end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("it is no file")


def as_array(value, name: str):
    """The array of what has one, as a tensor of torch, and else `value` itself. ValueError where that cannot be had."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__array__"):
        return value
    try:
        return np.asarray(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"{name}: expected an array in the memory of the CPU, given {type(value).__name__}: {error}"
        ) from error


def read_array(path: str | os.PathLike, name: str, wanted: Sequence[str]) -> np.ndarray:
    """The array of a file of `ARRAYS`: the only one, or of several the first that has a name of `wanted`.

    `name` is what errors call it. Raises ValueError for a file that cannot be read, that holds pickled objects, that is shorter
    than its header says, whose member expands beyond measure, and for several arrays of other names.
    """
    found = read_arrays(path, name, wanted)
    for key in wanted:
        if key in found:
            return found[key]
    if len(found) == 1:
        return next(iter(found.values()))
    raise ValueError(f"{name}: expected one array, or one called {_either(wanted)}, given {_listed(found)}")


def read_arrays(path: str | os.PathLike, name: str, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of a file whose names are in `wanted`; where none has such a name, the only one, under its own.

    ValueError as `read_array`.
    """
    if Path(path).suffix.lower() in (".pt", ".pth"):
        return _of_torch(path, name, wanted)
    try:
        check_is_file(path)
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                file.seek(0)
                return {"": _of_numpy(file, os.fstat(file.fileno()).st_size)}
            with zipfile.ZipFile(file) as members:
                files = {info.filename.removesuffix(".npy"): info for info in members.infolist()}
                found = {}
                for key in _chosen(files, wanted):
                    info = files[key]
                    if info.file_size > max(MAX_EXPANDED, MAX_EXPANSION * info.compress_size):
                        raise ValueError(f"{key} expands to {info.file_size:,} bytes from {info.compress_size:,}")
                    with members.open(info) as member:
                        found[key] = _of_numpy(member, info.file_size)
                if found:
                    return found
    except Exception as error:  # numpy and zipfile raise errors of many kinds for broken files
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: expected an array in a .npy or .npz file, cannot read it: {reason}") from error
    raise ValueError(f"{name}: expected one array, or one called {_either(wanted)}, given {_listed(files)}")


def _chosen(names: Mapping, wanted: Sequence[str]) -> list[str]:
    """Names that are wanted, or else the only one."""
    return [key for key in wanted if key in names] or (list(names) if len(names) == 1 else [])


def _of_numpy(file, size: int) -> np.ndarray:
    """The array of an open .npy file of `size` bytes, whose header is looked at before anything is allocated."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"expected version 1 or 2 of the .npy format, given {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are not read")
    if dtype.kind not in "biuf":
        raise ValueError(f"expected bools, integers or floats, given {dtype}")
    count, left = math.prod(shape), size - file.tell()
    if any(length < 0 for length in shape) or count * dtype.itemsize > left:
        raise ValueError(f"its header says {list(shape)} of {dtype}, and {left:,} bytes follow")
    values = np.empty(count, dtype)
    if count and file.readinto(values.view(np.uint8)) != values.nbytes:
        raise ValueError(f"it ends before {list(shape)} of {dtype}")
    return values.reshape(shape[::-1]).T if by_columns else values.reshape(shape)


def _of_torch(path: str | os.PathLike, name: str, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Tensors of a file of torch, which is read without running what it may hold."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"{name}: torch is needed to read it; save it as .npy, or install the extra torch: {error}") from error
    try:
        check_is_file(path)
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are damaged, or hold more than tensors
        # Not torch's own words, which tell how to read what is not safe.
        raise ValueError(f"{name}: expected tensors alone in a file of torch, cannot read it: {type(error).__name__}") from None
    tensors = value if isinstance(value, Mapping) else {"": value}
    tensors = {str(key): tensor for key, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    found = {key: tensors[key] for key in _chosen(tensors, wanted)}
    if not found:
        raise ValueError(f"{name}: expected one tensor, or one called {_either(wanted)}, given {_listed(tensors)}")
    return {key: _numbers(tensor) for key, tensor in found.items()}


def _numbers(tensor) -> np.ndarray:
    """The array of a tensor; what numpy has no type for, as bfloat16, in float32."""
    tensor = tensor.detach()
    try:
        return tensor.numpy()
    except TypeError:
        return tensor.float().numpy()


def _either(names: Sequence[str]) -> str:
    *some, last = map(repr, names)
    return f"{', '.join(some)} or {last}" if some else last


def _listed(names) -> str:
    found = sorted(names)
    return ", ".join(found[:8]) + (f", ... ({len(found)})" if len(found) > 8 else "") or "none"
