"""Weights of other libraries as layers here hold them, `[Cout, *kernel, Cin]`, and back.

    layer.weight = from_layout(checkpoint["conv.kernel"], "minkowski", kernel_size=3)

The caller names the layout: a shape cannot tell it. Coordinates and the axes of kernels keep their order, the first one is x
here whatever a library calls it. A layout also says how a layer of kernel and stride 1 reads its memory: layers here, as
those of spconv 2.x, take `[Cout, 1, 1, 1, Cin]` as a row-major `[Cin, Cout]` matrix, unless they have groups.
"""

from dataclasses import dataclass
from math import prod

import numpy as np

from .eager.arrays import describe, kind_of
from .op.numbers import MOST_STEP, as_axes, check_int, check_most, shown

MOST_AXES = 3
NEVER, ALWAYS, ODD = "never", "always", "if odd in number"


@dataclass(frozen=True)
class Layout:
    """How a library stores the weight of a convolution.

    `dims`: its dimensions: "out", "in" (input channels of a group), "kernel" (the kernel's axes, x first) or "taps" (one
    dimension for all of them, so that the caller must tell the kernel's size). `x_fastest`: whether taps are numbered with x
    fastest, instead of the last axis. `reinterprets`: whether a layer of kernel and stride 1 reads its memory as [Cin, Cout].
    """

    dims: tuple[str, ...]
    words: str
    x_fastest: str = NEVER
    reinterprets: bool = False

    @property
    def flat(self) -> bool:
        return "taps" in self.dims

    @property
    def place(self) -> int:
        """Where the kernel begins among the dimensions."""
        return self.dims.index("taps" if self.flat else "kernel")

    def labels(self, kernel: tuple[int, ...]) -> list:
        """What each dimension is when every axis of the kernel has one: "out", "in", or the number of an axis.

        A layout without input channels gets one more dimension for them, the last.
        """
        axes = list(range(len(kernel)))
        if self.x_fastest == ALWAYS or (self.x_fastest == ODD and prod(kernel) % 2):
            axes.reverse()
        labels = [*self.dims[: self.place], *axes, *self.dims[self.place + 1 :]]
        return labels if "in" in labels else [*labels, "in"]


LAYOUTS: dict[str, Layout] = {
    "spconv2": Layout(("out", "kernel", "in"), "[Cout, kx, ky, kz, Cin] of spconv 2.x", reinterprets=True),
    "spconv1": Layout(("kernel", "in", "out"), "[kx, ky, kz, Cin, Cout] of spconv 1.x"),
    "minkowski": Layout(("taps", "in", "out"), "[taps, Cin, Cout] of MinkowskiEngine", ALWAYS),
    "minkowski_channelwise": Layout(("taps", "out"), "[taps, C] of MinkowskiChannelwiseConvolution", ALWAYS),
    "torchsparse": Layout(("taps", "in", "out"), "[taps, Cin, Cout] of torchsparse", ODD),
    "flexgemm": Layout(("out", "kernel", "in"), "[Cout, kx, ky, kz, Cin] of FlexGEMM"),
    "torch": Layout(("out", "in", "kernel"), "[Cout, Cin / groups, kx, ky, kz] of torch's convolutions"),
}


def from_layout(weight, layout: str, kernel_size=None, *, stride=1, groups: int = 1, ndim: int = 3):
    """The weight of a layer here, `[Cout, *kernel, Cin / groups]`, from one in another library's layout: a contiguous copy.

    weight: numpy array or torch tensor of any dtype, which is kept; layout: one of `LAYOUTS`. kernel_size: an int, or one for
    each of `ndim` axes, needed where one dimension stands for all taps and checked elsewhere. stride, groups: those of the
    layer, as one of kernel 1 is pointwise if both are 1; leave stride at 1 for an inverse convolution. The [Cin, Cout] that
    MinkowskiEngine and torchsparse store for kernel 1 is taken as well.

    Raises ValueError for an unknown layout, for a weight of another kind, rank or kernel, and for a missing kernel size.
    """
    found, shape = _layout(layout), _shape(weight)
    kernel = None if kernel_size is None else _axes("kernel_size", kernel_size, ndim)
    if found.flat:
        if kernel is None:
            raise ValueError(f"kernel_size: expected that of the layer, which {layout!r} weights do not tell, given None")
        if prod(kernel) == 1 and len(shape) == len(found.dims) - 1:
            shape = (1, *shape)
    axes = len(shape) - len(found.dims) + 1
    stored = shape[found.place : found.place + axes]
    if not 1 <= axes <= (1 if found.flat else MOST_AXES):
        raise ValueError(f"weight: expected {found.words}, given {describe(weight)}")
    if kernel is not None and stored != ((prod(kernel),) if found.flat else kernel):
        size = f"{prod(kernel)} taps" if found.flat else f"a kernel of {list(kernel)}"
        raise ValueError(f"weight: expected {size} in {found.words}, given {describe(weight)}")
    kernel = kernel or stored
    labels = found.labels(kernel)
    sizes = [kernel[label] for label in labels if isinstance(label, int)]
    full = [*shape[: found.place], *sizes, *shape[found.place + axes :]]
    array = weight.reshape(full if len(full) == len(labels) else [*full, 1])
    array = _permuted(array, [labels.index(label) for label in _own(kernel)])
    if not _is_pointwise(kernel, stride, groups) or found.reinterprets:
        return array
    out, channels = array.shape[0], array.shape[-1]
    return _permuted(array.reshape((out, channels)), [1, 0]).reshape(array.shape)


def to_layout(weight, layout: str, *, stride=1, groups: int = 1):
    """A layer's weight, `[Cout, *kernel, Cin / groups]`, as another library stores it: the inverse of `from_layout`.

    Raises ValueError for an unknown layout, for a weight of another kind or rank, and for more than one input channel a group
    where the layout has no place for them.
    """
    found, shape = _layout(layout), _shape(weight)
    if not 3 <= len(shape) <= MOST_AXES + 2:
        raise ValueError(f"weight: expected [Cout, *kernel, Cin] with one to three axes, given {describe(weight)}")
    out, *kernel, channels = shape
    if "in" not in found.dims and channels != 1:
        raise ValueError(f"weight: expected one input channel a group for {found.words}, given {describe(weight)}")
    if _is_pointwise(tuple(kernel), stride, groups) and not found.reinterprets:
        weight = _permuted(weight.reshape((channels, out)), [1, 0]).reshape(shape)
    own = _own(kernel)
    array = _permuted(weight, [own.index(label) for label in found.labels(tuple(kernel))])
    sizes = {"out": [out], "in": [channels], "taps": [prod(kernel)], "kernel": kernel}
    return array.reshape([size for dim in found.dims for size in sizes[dim]])


def _own(kernel) -> list:
    """The dimensions of a layer's weight, as `Layout.labels` names them."""
    return ["out", *range(len(kernel)), "in"]


def _is_pointwise(kernel: tuple[int, ...], stride, groups: int) -> bool:
    """Whether a layer reads the memory of its weight as [Cin, Cout]. ValueError for no stride or number of groups."""
    strides, groups = _axes("stride", stride, len(kernel)), check_int("weights", "groups", groups, 1)
    return prod(kernel) == 1 and prod(strides) == 1 and groups == 1


def _permuted(array, order: list[int]):
    """A contiguous copy with its axes in another order."""
    if kind_of(array) == "torch":
        return array.permute(*order).contiguous().clone()
    return np.array(array.transpose(order), order="C")


def _axes(argument: str, value, ndim: int) -> tuple[int, ...]:
    """An int or one for each of `ndim` axes, at least 1."""
    axes = as_axes(value, ndim)
    if axes is None or min(axes) < 1:
        raise ValueError(f"{argument}: expected an int or {ndim} of at least 1, given {shown(value)}")
    check_most(argument, value, axes, MOST_STEP)
    return axes


def _shape(weight) -> tuple[int, ...]:
    if kind_of(weight) not in ("numpy", "torch"):
        raise ValueError(f"weight: expected a numpy array or a torch tensor, given {describe(weight)}")
    return tuple(weight.shape)


def _layout(name: str) -> Layout:
    if not isinstance(name, str) or name not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(map(repr, LAYOUTS))}, given {name!r}")
    return LAYOUTS[name]
