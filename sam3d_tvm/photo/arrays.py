"""Arrays in files, .npy, .npz and those of torch, and what errors say of arrays."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sam3d_tvm.reading import load_torch, npz_entries, read_npy

MAX_SIDE = 16384  # pixels
ARRAYS = (".npy", ".npz", ".pt", ".pth")


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
        return _numbers(value) if hasattr(value, "detach") else np.asarray(value)
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


def read_arrays(path: str | os.PathLike, name: str, wanted: Sequence[str], beside: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of a file whose names are in `wanted`; where none has such a name, the only one, under its own. Those whose
    names are in `beside` do not count for that, and come along.

    ValueError as `read_array`.
    """
    if Path(path).suffix.lower() in (".pt", ".pth"):
        return _of_torch(path, name, wanted, beside)
    try:
        check_is_file(path)
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                file.seek(0)
                return {"": read_npy(file, os.fstat(file.fileno()).st_size, Path(path).name)}
            files = npz_entries(Path(path), Path(path).name)
            with zipfile.ZipFile(file) as members:
                found = {}
                for key in _chosen(files, wanted, beside):
                    with members.open(files[key]) as member:
                        found[key] = read_npy(member, files[key].file_size, f"{Path(path).name}: {key}")
                if found:
                    return found
    except Exception as error:  # numpy and zipfile raise errors of many kinds for broken files
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{name}: expected an array in a .npy or .npz file, cannot read it: {reason}") from error
    raise ValueError(f"{name}: expected one array, or one called {_either(wanted)}, given {_listed(files)}")


def _chosen(names: Mapping, wanted: Sequence[str], beside: Sequence[str]) -> list[str]:
    """Names that are wanted, or else the only one, and with them those beside."""
    own = [key for key in names if key not in beside]
    found = [key for key in wanted if key in names] or (own if len(own) == 1 else [])
    return [*found, *(key for key in beside if key in names)] if found else []


def _of_torch(path: str | os.PathLike, name: str, wanted: Sequence[str], beside: Sequence[str]) -> dict[str, np.ndarray]:
    """Tensors of a file of torch, which is read without running what it may hold."""
    try:
        value = load_torch(Path(path), Path(path).name)
    except ValueError as error:
        raise ValueError(f"{name}: expected tensors alone in a file of torch, cannot read it: {error}") from error
    import torch

    tensors = value if isinstance(value, Mapping) else {"": value}
    tensors = {str(key): tensor for key, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    found = {key: tensors[key] for key in _chosen(tensors, wanted, beside)}
    if not found:
        raise ValueError(f"{name}: expected one tensor, or one called {_either(wanted)}, given {_listed(tensors)}")
    return {key: _numbers(tensor) for key, tensor in found.items()}


def _numbers(tensor) -> np.ndarray:
    """The array of a tensor; what numpy has no type for, as bfloat16, in float32."""
    tensor = tensor.detach()
    try:
        return tensor.numpy()
    except TypeError:
        if tensor.device.type != "cpu":
            raise
        return tensor.float().numpy()


def _either(names: Sequence[str]) -> str:
    *some, last = map(repr, names)
    return f"{', '.join(some)} or {last}" if some else last


def _listed(names) -> str:
    found = sorted(names)
    return ", ".join(found[:8]) + (f", ... ({len(found)})" if len(found) > 8 else "") or "none"
