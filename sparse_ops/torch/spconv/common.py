"""What convolutions and pools share: the check of their input, the record of a benchmark, the count of voxels."""

import torch

from ...eager.arrays import describe
from ...op.index import check_taps
from ...op.numbers import MOST_STEP, as_axes, check_most, shown
from .core import IndiceData, SparseConvTensor, as_sparse
from .sites import MOST_AXES, Sites, as_sizes, surely_differ

MAX_NUM_VOXELS = "max_num_voxels_during_training"  # a buffer of layers that count


def axes_of(argument: str, value, ndim: int, least: int) -> list[int]:
    """An int or one for each axis, from `least` to `MOST_STEP`, as a list."""
    axes = as_axes(value, ndim)
    if axes is None or min(axes) < least:
        raise ValueError(f"{argument}: expected an int or {ndim} of at least {least}, given {shown(value)}")
    check_most(argument, value, axes, MOST_STEP)
    return list(axes)


def checked_axes(layer: str, ndim: int, kernel_size, subm: bool) -> list[int]:
    """The kernel size. ValueError for more than three axes, too many taps, and even sizes that have no centre."""
    if ndim not in range(1, MOST_AXES + 1):
        raise ValueError(f"ndim: expected one to {MOST_AXES} axes, given {shown(ndim)} for {layer}")
    kernel = axes_of("kernel_size", kernel_size, ndim, 1)
    check_taps(layer, tuple(kernel))
    if subm and any(k % 2 == 0 for k in kernel):
        raise ValueError(
            f"kernel_size: expected odd sizes where output voxels are the input voxels, given {shown(kernel_size)}"
        )
    return kernel


def checked_input(layer, x) -> SparseConvTensor:
    """`x` as one of ours. ValueError for what is no SparseConvTensor, for other axes, another device, rows that differ."""
    x = as_sparse(x)
    axes = x.indices.shape[1] - 1
    if axes != layer.ndim:
        raise ValueError(f"input: expected indices of {layer.ndim} axes, given {axes}")
    if x.indices.dtype != torch.int32:
        raise ValueError(f"indices: only int32 is supported, given {describe(x.indices)}: pass indices.int()")
    if x.is_quantized:
        raise ValueError(f"features: expected float32, bfloat16 or float16, given {describe(x.features)}")
    for argument, tensor in (("features", x.features), ("indices", x.indices)):
        if tensor.device.type != "cpu":
            raise ValueError(f"{argument}: expected a tensor on a CPU, given {describe(tensor)} on {tensor.device}")
    if surely_differ(x.features.shape[0], x.indices.shape[0]):
        raise ValueError(f"features: expected {x.indices.shape[0]} rows, one for each of indices, given {x.features.shape[0]}")
    shape = as_sizes("spatial_shape", x.spatial_shape, axes)
    return x if shape is x.spatial_shape else x.moved(x.features, spatial_shape=shape)


def check_untouched(key, found, expected: str) -> None:
    """ValueError for an entry of an `indice_dict` that no layer here made, or whose voxels were written into since."""
    if not isinstance(found, IndiceData) or found._built is None:
        raise ValueError(f"indice_key: {key!r}: expected what a layer left there, given {shown(found)}")
    if found._source.changed or found._target.changed:
        raise ValueError(
            f"indice_key: {key!r}: expected indices as they were when its map was built, given some that were changed in place "
            f"since: {expected}"
        )


def check_same(key, what: str, given, expected) -> None:
    """ValueError where a layer does not fit the map under its key."""
    if surely_differ(given, expected):
        raise ValueError(f"indice_key: {key!r}: expected {what} {expected}, as its map was built for, given {given}")


def check_voxels(key, x: SparseConvTensor, sites: Sites) -> None:
    """ValueError where a tensor has other voxels than a map was built for."""
    given, expected = x.indices, sites.indices
    check_same(key, "number of voxels", given.shape[0], expected.shape[0])
    if given is not expected and not torch.compiler.is_compiling() and not torch.equal(given, expected):
        raise ValueError(f"indice_key: {key!r}: expected the voxels that its map was built for, given others")


def count_voxels(layer, rows) -> None:
    """Keep the largest number of output voxels in the layer's buffer. A program that torch.export traces keeps none."""
    buffer = getattr(layer, MAX_NUM_VOXELS, None)
    if layer.record_voxel_count and buffer is not None and not torch.compiler.is_compiling():
        buffer.clamp_(min=rows)


def record_of(layer, x: SparseConvTensor, name, kind: str, **parameters) -> dict | None:
    """Where a layer notes its times, if a tensor asks for it. ValueError for a layer without a name then."""
    if not x.benchmark:
        return None
    if name is None:
        raise ValueError(f"name: expected one for each layer of a benchmark, given None for a {kind}")
    lists = {key: [] for key in ("indice_gen_time", "time", "num_points", "num_out_points")}
    geometry = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    return x.benchmark_record.setdefault(name, {"type": kind, **lists, "params": geometry | parameters})


def note(record: dict | None, times: tuple[float, float, float], rows, out_rows) -> None:
    """Note when a layer began, had its map and was done, and its numbers of voxels."""
    if record is not None:
        begun, mapped, done = times
        record["indice_gen_time"].append(mapped - begun)
        record["time"].append(done - mapped)
        record["num_points"].append(rows)
        record["num_out_points"].append(out_rows)
