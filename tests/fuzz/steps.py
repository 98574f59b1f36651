"""Steps of a network, a class each: what it draws, how it runs eager and in a graph, and what the oracle expects.

A step reads the tensor before it, and may read an earlier one (`ref`). What an oracle expects is computed from the features
that the step was given in this very run, so that tolerances stay those of one step.
"""

from dataclasses import dataclass, field, fields, replace
from math import sqrt
from typing import Any, ClassVar

import numpy as np
from tvm import relax
from tvm.relax.frontend.nn import Tensor

import sparse_ops
from sparse_ops import functional, nn, op
from sparse_ops.eager.arrays import as_kind, as_tensor, dtype_of, kind_of, reshape
from sparse_ops.eager.call import run as run_op
from sparse_ops.nn.attention import heads_of
from sparse_ops.nn.attention import rows_of as rows_of_heads
from sparse_ops.nn.carrier import emit
from sparse_ops.nn.conv import linked
from tir_kernels.spec import (
    attention,
    dense,
    interpolate,
    layer_norm,
    pool,
    quantize,
    segment_pool,
    serialize,
    subdivide,
    trilinear,
    unique,
    windows,
)
from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.channel_affine import of_batch_norm
from tir_kernels.spec.coordinate_index import COORDINATE_LIMIT
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import naive_inverse
from tir_kernels.spec.sites import out_extent

from .cloud import Cloud, numpy_dtype
from .oracle import Voxels, conv, keys, rows_of, sites, table

MOST_ROWS = 6000  # of a tensor, as oracles are slow
MOST_TERMS = 4e7  # products of a step
MOST_CELLS = 1 << 20  # elements of a dense grid


@dataclass
class Plan:
    """What is known of a step before it runs: where its output lies, and what the oracle and the run need besides features.

    source: where an undoing step leads, if there is one by `indice_key`. refusal: the step must raise a ValueError with these
    words. skipped: the step is not for these voxels.
    """

    out: Voxels
    source: Voxels | None = None
    keyed: bool = False
    table: Any = None  # of neighbours, int32 [taps, M]; partitions of attention, grids of points
    inverse: np.ndarray | None = None  # the row that each row comes from or goes to, or a mask of rows
    geometry: Geometry | None = None
    sides: dict[str, np.ndarray] = field(default_factory=dict)  # arrays that the run takes beside features
    other: Voxels | None = None  # of a second tensor
    refusal: str | None = None
    skipped: bool = False


@dataclass
class Wanted:
    """What an oracle says of one array. depth 0: the same values. size: of each value, or of all, see `tests.tolerance`."""

    values: np.ndarray
    depth: float = 0
    size: Any = None


@dataclass
class Step:
    """Options are fields: those of a palette, and what `bound` adds for one place of one network."""

    dims: int
    dtype: str
    cin: int
    cout: int
    place: int = 0  # among the steps of a network, from 1; node 0 is its input
    ref: int | None = None  # the node of an earlier tensor, or the step that this one undoes
    seed: int = 0

    probes: ClassVar[bool] = False  # whether it leaves the tensor as it is and only looks
    by_row: ClassVar[bool] = True  # whether a result has the same bits wherever in the tensor its rows are
    draws_voxels: ClassVar[bool] = False  # whether it brings voxels of its own, which depend on those of all elements
    takes_special: ClassVar[bool] = False  # whether NaN and infinities are promised to come out as numpy has them
    traces: ClassVar[bool] = True  # whether a graph can have it
    dimensions: ClassVar[tuple[int, ...]] = (1, 2, 3)

    @classmethod
    def draw(cls, rng: np.random.Generator, **common) -> "Step":
        """A step of a palette."""
        return cls(**common)

    @property
    def kind(self) -> str:
        """The name under which it is counted."""
        return type(self).__name__

    def __str__(self) -> str:
        """The options that are not what they are by default."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("dims", "dtype", "cin", "cout", "place")}
        shown = [f"{f.name}={own[f.name]!r}" for f in fields(self) if f.name in own and own[f.name] != f.default]
        return f"{self.kind}({self.cin} to {self.cout} channels{', ' if shown else ''}{', '.join(shown)})"

    def bound(self, rng: np.random.Generator, plans: list[Plan]) -> "Step | None":
        """This step behind others in a network; None where it cannot be."""
        return replace(self, place=len(plans), seed=int(rng.integers(1 << 31)))

    def draw_weights(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {}

    def plan(self, plans: list[Plan]) -> Plan:
        """Geometry, from the plans of the steps before; the voxels of the tensor that it reads are those of the last."""
        return Plan(plans[-1].out)

    def layer(self, weights: dict[str, Any]):
        """What is made once and called often, of arrays of any kind."""
        return weights

    def run(self, layer, tensors: list, plan: Plan) -> tuple[Any, list]:
        """The tensor behind this step, and other results."""
        raise NotImplementedError

    def module(self) -> nn.Module | None:
        """A module of a graph with the parameters."""
        return None

    def parameters(self, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Weights by the names that they have in `module`."""
        return weights

    def trace(self, module, tensors: list, sides: dict[str, Tensor], plan: Plan) -> tuple[Any, list]:
        """As `run`, in a graph."""
        raise NotImplementedError

    def expected(
        self, weights: dict[str, np.ndarray], plan: Plan, feats: list[np.ndarray]
    ) -> tuple[Wanted | None, list[Wanted]]:
        """Of the features and of other results; None: those of the tensor before. feats: those of all tensors before."""
        raise NotImplementedError


def axes_of(rng, dims: int, choices, p=None) -> tuple[int, int, int]:
    """One value of the choices for all axes, or one for each; 1 (or what is neutral) along the axes that are not there."""
    neutral, values = choices
    if rng.random() < 0.6:
        axes = [int(rng.choice(values, p=p))] * dims
    else:
        axes = [int(n) for n in rng.choice(values, dims, p=p)]
    return (neutral,) * (3 - dims) + tuple(axes)


def random(rng, shape, dtype: str, size: float = 1.0) -> np.ndarray:
    """Normal values of a size, rounded to a dtype."""
    return (rng.standard_normal(shape) * size).astype(numpy_dtype(dtype))


def same(array) -> Wanted:
    """Exactly these values."""
    return Wanted(np.asarray(array))


# Layers with a kernel


@dataclass
class Convolution(Step):
    """A convolution of any form, with the batch norm and the activation behind it."""

    form: str = "subm"  # or "strided" or "transposed"
    kernel: tuple = (3, 3, 3)
    stride: tuple = (1, 1, 1)
    padding: tuple = (0, 0, 0)
    dilation: tuple = (1, 1, 1)
    output_padding: tuple = (0, 0, 0)
    groups: int = 1
    bias: bool = True
    norm: bool = False
    activation: str = "none"
    keyed: bool = True
    key: str | None = None
    chosen: bool = False  # onto voxels of the caller's

    @classmethod
    def draw(cls, rng, form: str = "", **common):
        dims, cin, cout = common["dims"], common["cin"], common["cout"]
        form = form or str(rng.choice(["subm", "strided", "transposed"], p=[0.45, 0.35, 0.2]))
        if form == "subm":
            kernel = axes_of(rng, dims, (1, [1, 3, 5]), p=[0.15, 0.7, 0.15])
            more = {"dilation": axes_of(rng, dims, (1, [1, 2, 3]), p=[0.75, 0.15, 0.1])}
        else:
            kernel = axes_of(rng, dims, (1, [1, 2, 3, 4]), p=[0.1, 0.4, 0.4, 0.1])
            more = {
                "stride": axes_of(rng, dims, (1, [1, 2, 3]), p=[0.2, 0.65, 0.15]),
                "padding": axes_of(rng, dims, (0, [0, 1, 2]), p=[0.5, 0.4, 0.1]),
                "dilation": axes_of(rng, dims, (1, [1, 2]), p=[0.85, 0.15]),
            }
            if max(kernel) == max(more["stride"]) == 1:
                more["padding"] = (0, 0, 0)
            elif form == "transposed" and rng.random() < 0.4:
                room = [max(s, d) - 1 for s, d in zip(more["stride"], more["dilation"], strict=True)]
                more["output_padding"] = tuple(int(rng.integers(0, most + 1)) for most in room)
        common_divisors = [g for g in range(1, min(cin, cout) + 1) if cin % g == cout % g == 0]
        return cls(
            form=form,
            kernel=kernel,
            groups=int(rng.choice(common_divisors[1:])) if common_divisors[1:] and rng.random() < 0.4 else 1,
            bias=bool(rng.random() < 0.7),
            norm=bool(rng.random() < 0.3),
            activation=str(rng.choice(list(ACTIVATIONS))) if rng.random() < 0.4 else "none",
            keyed=bool(rng.random() < 0.7),
            chosen=bool(rng.random() < 0.15),
            **more,
            **common,
        )

    @property
    def kind(self):
        return f"convolution, {self.form}{', chosen' if self.chosen else ''}{', grouped' if self.groups > 1 else ''}"

    @property
    def draws_voxels(self) -> bool:
        return self.chosen

    @property
    def pointwise(self) -> bool:
        return max(self.kernel) == 1 and max(self.stride) == 1

    @property
    def geometry(self) -> Geometry:
        if self.form == "subm":
            return Geometry.submanifold(self.kernel, self.dilation)
        more = {"output_padding": self.output_padding} if any(self.output_padding) else {}
        return Geometry(self.kernel, self.stride, self.padding, self.dilation, self.form == "transposed", **more)

    def bound(self, rng, plans):
        made = super().bound(rng, plans)
        if not self.keyed:
            return made
        if self.form != "subm" or self.chosen:
            return replace(made, key=f"step {made.place}")
        first = next(i for i, plan in enumerate(plans) if plan.out is plans[-1].out)  # layers on the same voxels share a key
        return replace(made, key=f"{self.kernel} by {self.dilation} on {first}")

    def draw_weights(self, rng):
        taps = int(np.prod(self.kernel))
        size = 1 / sqrt(self.cin // self.groups * min(taps, 6))
        weights = {"weight": random(rng, (self.cout, *self.kernel[3 - self.dims :], self.cin // self.groups), self.dtype, size)}
        if self.bias:
            weights["bias"] = random(rng, self.cout, "float32", 0.3)
        return weights | (norm_weights(rng, self.cout) if self.norm else {})

    def plan(self, plans):
        at = plans[-1].out
        geometry = self.geometry
        if self.chosen:
            other = other_voxels(self.seed, at)
            if self.pointwise:  # no tap leads anywhere but to the voxel itself
                geometry = Geometry((1, 1, 1))
            sides = {"onto": other.coords}
            return Plan(other, at, self.keyed, table(at.coords, other.coords, geometry), geometry=geometry, sides=sides)
        if self.form == "subm" or self.pointwise:
            geometry = geometry if self.form == "subm" else Geometry((1, 1, 1))
            return Plan(at, table=table(at.coords, at.coords, geometry), geometry=geometry)
        return strided_plan(at, geometry, self.keyed)

    def layer(self, weights):
        of = {"subm": "SubMConv", "strided": "SparseConv", "transposed": "SparseConvTranspose"}[self.form]
        more = {} if not any(self.output_padding) else {"output_padding": self.output_padding[3 - self.dims :]}
        if self.form != "subm":
            more |= {"stride": self.stride[3 - self.dims :], "padding": self.padding[3 - self.dims :]}
        made = getattr(sparse_ops, f"{of}{self.dims}d")(
            self.cin,
            self.cout,
            self.kernel[3 - self.dims :],
            dilation=self.dilation[3 - self.dims :],
            groups=self.groups,
            bias=self.bias,
            indice_key=self.key,
            **more,
        )
        made.weight = weights["weight"]
        if self.bias:
            made.bias = weights["bias"]
        behind = []
        if self.norm:
            behind.append(norm_layer(weights))
        if self.activation != "none":
            behind.append(activation_layer(self.activation))
        if self.chosen:
            return made, sparse_ops.SparseSequential(*behind)
        return sparse_ops.SparseSequential(made, *behind) if behind else made

    def run(self, layer, tensors, plan):
        if not self.chosen:
            return layer(tensors[-1]), []
        made, behind = layer
        return behind(made(tensors[-1], coordinates=tensor_on(plan.out, like=tensors[-1]))), []

    def module(self):
        made = nn.Module()
        of = {"subm": nn.SubMConv3d, "strided": nn.SparseConv3d, "transposed": nn.SparseConvTranspose3d}[self.form]
        more = {"groups": self.groups} if self.groups > 1 else {}
        if self.form != "subm":
            more |= {"stride": self.stride, "padding": self.padding, "indice_key": self.key}
            more |= {"output_padding": self.output_padding} if any(self.output_padding) else {}
        made.conv = of(self.cin, self.cout, self.kernel, dilation=self.dilation, bias=self.bias, dtype=self.dtype, **more)
        if self.norm:
            made.norm = nn.BatchNorm(self.cout)
        return made

    def parameters(self, weights):
        own = {f"conv.{name}": weights[name] for name in ("weight", "bias") if name in weights}
        return own | {
            f"norm.{name.removeprefix('norm_')}": value for name, value in weights.items() if name.startswith("norm_")
        }

    def trace(self, module, tensors, sides, plan):
        x = tensors[-1]
        if self.form != "subm":
            module.conv.shape = None if plan.out.unbounded else "infer"
        more = {"sites": nn.Sites(sides["onto"], x.sites.batch)} if self.chosen else {}
        if not self.norm:
            return module.conv(x, activation=self.activation, **more), []
        return module.norm(module.conv(x, **more), activation=self.activation), []

    def expected(self, weights, plan, feats):
        x = feats[-1]
        if self.pointwise and self.groups == 1:  # as spconv reads the weight of such layers
            weight = weights["weight"].reshape(self.cin, self.cout).T[:, None]
        else:
            weight = weights["weight"].reshape(self.cout, -1, self.cin // self.groups)
        y, size = conv(x, weight, plan.table, weights.get("bias"), self.groups)
        y, size = normed(weights, y, size) if self.norm else (y, size)
        depth = weight.shape[1] * weight.shape[2] + 3
        return Wanted(ACTIVATIONS[self.activation](y), depth, size), []


def strided_plan(at: Voxels, geometry: Geometry, keyed: bool) -> Plan:
    """Where a strided or transposed layer leads."""
    extent = at.extent
    if extent is None:
        out, shape = sites(at.coords, geometry, None), None
    else:
        shape = out_extent(extent, geometry)
        if min(shape) < 1 <= min(extent) and not at.infers:
            return Plan(at, refusal="kernel_size: expected a kernel that the padded grid has room for")
        shape = (0,) * 3 if min(extent) < 1 else tuple(max(n, 0) for n in shape)  # none of voxels: there is no grid to infer
        out = sites(at.coords, geometry, shape)
    return Plan(at.moved(out, shape), at, keyed, table(at.coords, out, geometry), geometry=geometry)


def other_voxels(seed: int, at: Voxels) -> Voxels:
    """Voxels of the caller's beside those of a tensor: some of these and others, within the same grid."""
    rng = np.random.default_rng([seed, 2])
    drawn = Cloud.draw(rng, at.dims, 300)
    own = at.coords[np.argsort(keys(at.coords))][rng.permutation(at.rows)[: at.rows // 2]]  # in whatever order rows are
    fresh = replace(drawn, negative=at.unbounded, given=False).voxels().coords
    fresh = fresh[fresh[:, 0] < at.batch]
    both = np.concatenate([own, fresh])
    if at.shape is not None:
        both = both[(both[:, 1:] < at.shape).all(1)]
    _, first = np.unique(keys(both), return_index=True)
    coords = both[rng.permutation(first)]
    return replace(at, coords=np.ascontiguousarray(coords, "int32"))


def tensor_on(voxels: Voxels, feats=None, like=None):
    """A SparseTensor of the kind of another one; without features, with one channel of zeros."""
    kind = kind_of(like.feats)
    feats = np.zeros((voxels.rows, 1), "float32") if feats is None else feats
    coords = to_kind(voxels.given(), kind)
    shape = None if voxels.shape is None else voxels.shape[3 - voxels.dims :]
    return sparse_ops.SparseTensor(to_kind(feats, kind), coords, shape, voxels.batch)


def to_kind(array: np.ndarray, kind: str):
    """A numpy array as one of another kind, over a copy."""
    array = np.array(array)
    return array if kind == "numpy" else as_kind(as_tensor(array, "array", (dtype_of(array),), array.shape), kind)


def to_numpy(array) -> np.ndarray:
    """An array of any kind as numpy's, over the same memory."""
    if isinstance(array, np.ndarray):
        return array
    return as_kind(as_tensor(array, "array", (dtype_of(array),), tuple(array.shape)), "numpy")


def norm_weights(rng, channels: int) -> dict[str, np.ndarray]:
    return {
        "norm_weight": random(rng, channels, "float32", 0.5) + np.float32(1),
        "norm_bias": random(rng, channels, "float32", 0.3),
        "norm_running_mean": random(rng, channels, "float32", 0.3),
        "norm_running_var": rng.uniform(0.3, 2, channels).astype("float32"),
    }


def norm_layer(weights):
    made = sparse_ops.BatchNorm1d(weights["norm_weight"].shape[0])
    for name in ("weight", "bias", "running_mean", "running_var"):
        setattr(made, name, weights[f"norm_{name}"])
    return made


def normed(weights, y, size):
    """Batch norm of an oracle's values and of their size."""
    arrays = (weights[f"norm_{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    scale, shift = of_batch_norm(*arrays)
    return y * scale + shift, size * np.abs(scale) + np.abs(shift)


def activation_layer(name: str):
    of = {"relu": sparse_ops.ReLU, "silu": sparse_ops.SiLU, "gelu": sparse_ops.GELU}
    return sparse_ops.GELU("tanh") if name == "gelu_tanh" else of[name]()


@dataclass
class Inverse(Step):
    """A convolution that undoes an earlier layer."""

    bias: bool = True
    kernel: tuple = (1, 1, 1)
    groups: int = 1

    @classmethod
    def draw(cls, rng, **common):
        divisors = [g for g in range(2, common["cin"] + 1) if common["cin"] % g == common["cout"] % g == 0]
        groups = int(rng.choice(divisors)) if divisors and rng.random() < 0.3 else 1
        return cls(bias=bool(rng.random() < 0.7), groups=groups, **common)

    def bound(self, rng, plans):
        undone = [i for i, plan in enumerate(plans) if plan.keyed and plan.out is plans[-1].out]
        undone = [i for i in undone if plans[i].source is not None and max(plans[i].geometry.kernel) > 1]
        if not undone:
            return None
        ref = int(rng.choice(undone))
        return replace(super().bound(rng, plans), ref=ref, kernel=plans[ref].geometry.kernel)

    def draw_weights(self, rng):
        size = 1 / sqrt(self.cin // self.groups * 4)
        weights = {"weight": random(rng, (self.cout, *self.kernel[3 - self.dims :], self.cin // self.groups), self.dtype, size)}
        return weights | ({"bias": random(rng, self.cout, "float32", 0.3)} if self.bias else {})

    def plan(self, plans):
        undone = plans[self.ref]
        return Plan(undone.source, table=naive_inverse(undone.table, undone.source.rows))

    def layer(self, weights):
        more = {"groups": self.groups} if self.groups > 1 else {}
        made = getattr(sparse_ops, f"SparseInverseConv{self.dims}d")(
            self.cin, self.cout, self.kernel[3 - self.dims :], f"step {self.ref}", self.bias, **more
        )
        made.weight = weights["weight"]
        if self.bias:
            made.bias = weights["bias"]
        return made

    def run(self, layer, tensors, plan):
        return layer(tensors[-1]), []

    def module(self):
        more = {"groups": self.groups} if self.groups > 1 else {}
        return nn.SparseInverseConv3d(
            self.cin, self.cout, self.kernel, f"step {self.ref}", bias=self.bias, dtype=self.dtype, **more
        )

    def trace(self, module, tensors, sides, plan):
        return module(tensors[-1]), []

    def expected(self, weights, plan, feats):
        weight = weights["weight"].reshape(self.cout, -1, self.cin // self.groups)
        y, size = conv(feats[-1], weight, plan.table, weights.get("bias"), self.groups)
        return Wanted(y, weight.shape[1] * weight.shape[2] + 1, size), []


@dataclass
class Pool(Step):
    """Maximum, mean or sum over windows."""

    mode: str = "max"
    kernel: tuple = (2, 2, 2)
    stride: tuple = (2, 2, 2)
    padding: tuple = (0, 0, 0)
    dilation: tuple = (1, 1, 1)
    from_zero: bool = False
    count_bias: int = 0
    ceil_mode: bool = False
    keyed: bool = True
    chosen: bool = False  # onto voxels of the caller's
    takes_special = True

    @classmethod
    def draw(cls, rng, **common):
        dims = common["dims"]
        kernel = axes_of(rng, dims, (1, [1, 2, 3]), p=[0.1, 0.6, 0.3])
        mode = str(rng.choice(pool.MODES))
        return cls(
            mode=mode,
            kernel=kernel,
            stride=kernel if rng.random() < 0.5 else axes_of(rng, dims, (1, [1, 2, 3]), p=[0.3, 0.5, 0.2]),
            padding=axes_of(rng, dims, (0, [0, 1]), p=[0.6, 0.4]),
            dilation=axes_of(rng, dims, (1, [1, 2]), p=[0.85, 0.15]),
            from_zero=mode == "max" and bool(rng.random() < 0.3),
            count_bias=int(rng.integers(0, 3)) if mode == "mean" else 0,
            ceil_mode=bool(rng.random() < 0.3),
            keyed=bool(rng.random() < 0.7),
            chosen=bool(rng.random() < 0.15),
            **common,
        )

    @property
    def kind(self):
        return f"pool, {self.mode}{', chosen' if self.chosen else ''}"

    @property
    def draws_voxels(self) -> bool:
        return self.chosen

    @property
    def geometry(self):
        more = {"ceil_mode": True} if self.ceil_mode else {}
        return Geometry(self.kernel, self.stride, self.padding, self.dilation, **more)

    @property
    def options(self):
        return {"max": {"from_zero": self.from_zero}, "mean": {"count_bias": self.count_bias}, "sum": {}}[self.mode]

    def plan(self, plans):
        at = plans[-1].out
        if self.chosen:
            other = other_voxels(self.seed, at)
            neighbours = table(at.coords, other.coords, self.geometry)
            return Plan(other, at, self.keyed, neighbours, geometry=self.geometry, sides={"onto": other.coords})
        return strided_plan(at, self.geometry, self.keyed)

    def layer(self, weights):
        of = {"max": "Max", "mean": "Avg", "sum": "Sum"}[self.mode]
        more = {"ceil_mode": True} if self.ceil_mode else {}
        return getattr(sparse_ops, f"Sparse{of}Pool{self.dims}d")(
            *(axes[3 - self.dims :] for axes in (self.kernel, self.stride, self.padding, self.dilation)),
            f"step {self.place}" if self.keyed else None,
            **self.options,
            **more,
        )

    def run(self, layer, tensors, plan):
        x = tensors[-1]
        return layer(x, tensor_on(plan.out, like=x)) if self.chosen else layer(x), []

    def trace(self, module, tensors, sides, plan):
        x, more = tensors[-1], {"ceil_mode": True} if self.ceil_mode else {}
        shape, key = None if plan.out.unbounded else "infer", f"step {self.place}" if self.keyed else None
        axes = self.kernel, self.stride, self.padding, self.dilation
        onto = nn.Sites(sides["onto"], x.sites.batch) if self.chosen else None
        if self.mode == "sum":  # for which there is no module
            to, kernel_map = x.sites.strided(*axes, shape, **more) if onto is None else (onto, x.sites.map_to(onto, *axes))
            pooled = emit(op.pool(x.feats._expr, kernel_map.expr, to.coords._expr, mode="sum"))
            return linked(x, pooled, to, kernel_map, key), []
        of = {"max": nn.SparseMaxPool3d, "mean": nn.SparseAvgPool3d}[self.mode]
        options = {"max_from_zero": self.from_zero} if self.mode == "max" else self.options
        return of(*axes, **options, indice_key=key, shape=shape, **more)(x, onto), []

    def expected(self, weights, plan, feats):
        reduction = pool.Reduction(self.mode, self.count_bias, self.from_zero)
        values = pool.naive(feats[-1], plan.table, reduction)
        if self.mode == "max":
            return same(values), []
        squares = pool.naive(feats[-1].astype("float64") ** 2, plan.table, pool.Reduction("sum"))
        return Wanted(values, self.geometry.taps + 1, np.sqrt(squares)), []


# Rows by themselves


@dataclass
class Linear(Step):
    """A linear layer, with bias, the rows that it reads as a residual, and an activation."""

    bias: bool = True
    residual: bool = False
    activation: str = "none"

    @classmethod
    def draw(cls, rng, **common):
        return cls(
            bias=bool(rng.random() < 0.7),
            residual=common["cin"] == common["cout"] and bool(rng.random() < 0.4),
            activation=str(rng.choice(list(ACTIVATIONS))) if rng.random() < 0.5 else "none",
            **common,
        )

    def draw_weights(self, rng):
        weights = {"weight": random(rng, (self.cout, self.cin), self.dtype, 1 / sqrt(self.cin))}
        return weights | ({"bias": random(rng, self.cout, "float32", 0.3)} if self.bias else {})

    def layer(self, weights):
        return sparse_ops.Weights(weights["weight"], weights.get("bias"))

    def run(self, layer, tensors, plan):
        x = tensors[-1]
        residual = x.feats if self.residual else None
        return x.replace_feature(functional.linear(x.feats, layer, None, residual, self.activation)), []

    def module(self):
        return nn.Linear(self.cin, self.cout, self.bias, self.dtype)

    def trace(self, module, tensors, sides, plan):
        return module(tensors[-1], tensors[-1] if self.residual else None, self.activation), []

    def expected(self, weights, plan, feats):
        y, size = matrix_product(weights, feats[-1], feats[-1] if self.residual else None)
        return Wanted(ACTIVATIONS[self.activation](y), self.cin + 2, size), []


def matrix_product(weights, x, residual=None):
    """A linear layer in float64, and the size of its sums."""
    every = np.arange(len(x), dtype="int32")[None]
    y, size = conv(x, weights["weight"][:, None], every, weights.get("bias"))
    if residual is not None:
        y, size = y + residual.astype("float64"), np.hypot(size, residual.astype("float64"))
    return y, size


@dataclass
class BatchNorm(Step):
    def draw_weights(self, rng):
        return norm_weights(rng, self.cin)

    def layer(self, weights):
        return norm_layer(weights)

    def run(self, layer, tensors, plan):
        return layer(tensors[-1]), []

    def module(self):
        return nn.BatchNorm(self.cin)

    def parameters(self, weights):
        return {name.removeprefix("norm_"): value for name, value in weights.items()}

    def trace(self, module, tensors, sides, plan):
        return module(tensors[-1]), []

    def expected(self, weights, plan, feats):
        x = feats[-1].astype("float64")
        y, size = normed(weights, x, np.abs(x))
        return Wanted(y, 4, size), []


@dataclass
class Activation(Step):
    activation: str = "relu"

    @classmethod
    def draw(cls, rng, **common):
        return cls(activation=str(rng.choice([name for name in ACTIVATIONS if name != "none"])), **common)

    def layer(self, weights):
        return activation_layer(self.activation)

    def run(self, layer, tensors, plan):
        return layer(tensors[-1]), []

    def trace(self, module, tensors, sides, plan):
        return nn.Activation(self.activation)(tensors[-1]), []

    def expected(self, weights, plan, feats):
        x = feats[-1].astype("float64")
        return Wanted(ACTIVATIONS[self.activation](x), 1, np.abs(x)), []


@dataclass
class LayerNorm(Step):
    """Which has no eager function: the op is called as these call theirs."""

    def draw_weights(self, rng):
        return {"weight": random(rng, self.cin, "float32", 0.5) + np.float32(1), "bias": random(rng, self.cin, "float32", 0.3)}

    def layer(self, weights):
        return sparse_ops.Weights(weights["weight"], weights["bias"])  # which can be copied, whatever it holds

    def run(self, layer, tensors, plan):
        x = tensors[-1]
        arrays = {"x": x.feats, "weight": layer.weight, "bias": layer.bias}
        return x.replace_feature(run_op("layer_norm", op.layer_norm, kind_of(x.feats), arrays, {})), []

    def module(self):
        return nn.LayerNorm(self.cin)

    def trace(self, module, tensors, sides, plan):
        return module(tensors[-1]), []

    def expected(self, weights, plan, feats):
        x = feats[-1].astype("float64")
        y = layer_norm.naive(x, weights["weight"], weights["bias"])
        largest = np.abs(x).max(1, keepdims=True, initial=0)
        size = largest / np.sqrt(x.var(1, keepdims=True) + 1e-6) * np.abs(weights["weight"]) + np.abs(weights["bias"])
        return Wanted(y, 2 * self.cin, size), []


@dataclass
class GroupNorm(Step):
    groups: int = 1
    by_row = False

    @classmethod
    def draw(cls, rng, **common):
        divisors = [g for g in range(1, common["cin"] + 1) if common["cin"] % g == 0]
        return cls(groups=int(rng.choice(divisors)), **common)

    def bound(self, rng, plans):
        return super().bound(rng, plans) if plans[-1].out.ascends else None

    def draw_weights(self, rng):
        return {"weight": random(rng, self.cin, "float32", 0.5) + np.float32(1), "bias": random(rng, self.cin, "float32", 0.3)}

    def plan(self, plans):
        at = plans[-1].out
        return Plan(at, refusal=None if at.ascends else "coords")

    def layer(self, weights):
        return sparse_ops.Weights(weights["weight"], weights["bias"])  # which can be copied, whatever it holds

    def run(self, layer, tensors, plan):
        x = tensors[-1]
        offsets = functional.batch_offsets(as_kind(x.coordinates.coords, kind_of(x.feats)), plan.out.batch)
        return x.replace_feature(functional.group_norm(x.feats, offsets, layer.weight, layer.bias, self.groups)), []

    def module(self):
        return nn.GroupNorm(self.groups, self.cin)

    def trace(self, module, tensors, sides, plan):
        return module(tensors[-1]), []

    def expected(self, weights, plan, feats):
        x, width = feats[-1].astype("float64"), self.cin // self.groups
        y, size, depth = np.zeros(x.shape), np.zeros(x.shape), 1
        for b in np.unique(plan.out.coords[:, 0]):
            rows = plan.out.coords[:, 0] == b
            part = x[rows].reshape(-1, self.groups, width)
            factor = 1 / np.sqrt(part.var((0, 2), keepdims=True) + 1e-5)
            y[rows] = ((part - part.mean((0, 2), keepdims=True)) * factor).reshape(-1, self.cin)
            size[rows] = (np.abs(part).max((0, 2), keepdims=True) * factor * np.ones(part.shape)).reshape(-1, self.cin)
            depth = max(depth, 2 * len(part) * width)
        return Wanted(
            y * weights["weight"] + weights["bias"], depth, size * np.abs(weights["weight"]) + np.abs(weights["bias"])
        ), []


# Several tensors


@dataclass
class Add(Step):
    """The sum with an earlier tensor on the same voxels."""

    def bound(self, rng, plans):
        ref = earlier(rng, plans)
        return None if ref is None else replace(super().bound(rng, plans), ref=ref)

    def run(self, layer, tensors, plan):
        return tensors[-1] + tensors[self.ref], []

    def trace(self, module, tensors, sides, plan):
        x, other = tensors[-1], tensors[self.ref]
        return x.with_feats(emit(relax.op.add(x.feats._expr, other.feats._expr))), []

    def expected(self, weights, plan, feats):
        a, b = feats[-1].astype("float64"), feats[self.ref].astype("float64")
        return Wanted(a + b, 1, np.hypot(a, b)), []


def earlier(rng, plans: list[Plan]) -> int | None:
    """The node of an earlier tensor on the voxels of the last one. The input may have other channels."""
    found = [i for i, plan in enumerate(plans[:-1]) if i and plan.out is plans[-1].out]
    return int(rng.choice(found)) if found else None


@dataclass
class Cat(Step):
    """Features beside those of an earlier tensor, and a linear layer back to as many channels."""

    def bound(self, rng, plans):
        ref = earlier(rng, plans)
        return None if ref is None else replace(super().bound(rng, plans), ref=ref)

    def draw_weights(self, rng):
        return {"weight": random(rng, (self.cout, 2 * self.cin), self.dtype, 1 / sqrt(2 * self.cin))}

    def layer(self, weights):
        return sparse_ops.Weights(weights["weight"])

    def run(self, layer, tensors, plan):
        both = sparse_ops.cat(tensors[-1], tensors[self.ref])
        return both.replace_feature(functional.linear(both.feats, layer)), [both.feats]

    def module(self):
        return nn.Linear(2 * self.cin, self.cout, False, self.dtype)

    def trace(self, module, tensors, sides, plan):
        both = nn.concat([tensors[-1], tensors[self.ref]])
        return module(both), [both.feats]

    def expected(self, weights, plan, feats):
        both = np.concatenate([feats[-1], feats[self.ref]], 1)
        y, size = matrix_product(weights, both)
        return Wanted(y, 2 * self.cin, size), [same(both)]


@dataclass
class SparseAdd(Step):
    """The sum with a tensor on other voxels."""

    draws_voxels = True

    def plan(self, plans):
        at = plans[-1].out
        other = other_voxels(self.seed, at)
        every = np.concatenate([at.coords, other.coords])
        coords, inverse = unique.naive(every)
        plan = Plan(at.moved(coords, at.shape), inverse=inverse)
        if at.shape is None and not at.infers:
            plan.out = replace(plan.out, unbounded=at.unbounded or bool((other.coords[:, 1:] < 0).any()))
        plan.sides = {
            "coords": other.coords,
            "feats": random(np.random.default_rng(self.seed), (other.rows, self.cin), self.dtype),
        }
        plan.other = other
        return plan

    def _other(self, x, plan):
        return tensor_on(plan.other, plan.sides["feats"], like=x)

    def run(self, layer, tensors, plan):
        return sparse_ops.sparse_add(tensors[-1], self._other(tensors[-1], plan)), []

    def _symbolic(self, x, sides):
        return nn.SymbolicSparseTensor.of(sides["feats"], sides["coords"], x.sites.batch)

    def trace(self, module, tensors, sides, plan):
        return nn.sparse_add(tensors[-1], self._symbolic(tensors[-1], sides)), []

    def expected(self, weights, plan, feats):
        every = np.concatenate([feats[-1], plan.sides["feats"]]).astype("float64")
        values = np.zeros((plan.out.rows, self.cin))
        size = np.zeros(values.shape)
        np.add.at(values, plan.inverse, every)
        np.add.at(size, plan.inverse, every**2)
        return Wanted(values, 1, np.sqrt(size)), []


@dataclass
class SparseCat(SparseAdd):
    """Features beside those of a tensor on other voxels, and a linear layer back to as many channels."""

    def draw_weights(self, rng):
        return {"weight": random(rng, (self.cout, 2 * self.cin), self.dtype, 1 / sqrt(2 * self.cin))}

    def layer(self, weights):
        return sparse_ops.Weights(weights["weight"])

    def run(self, layer, tensors, plan):
        both = sparse_ops.sparse_cat(tensors[-1], self._other(tensors[-1], plan))
        return both.replace_feature(functional.linear(both.feats, layer)), [both.feats]

    def module(self):
        return nn.Linear(2 * self.cin, self.cout, False, self.dtype)

    def trace(self, module, tensors, sides, plan):
        both = nn.sparse_cat(tensors[-1], self._symbolic(tensors[-1], sides))
        return module(both), [both.feats]

    def expected(self, weights, plan, feats):
        both = np.zeros((plan.out.rows, 2 * self.cin), feats[-1].dtype)
        both[plan.inverse[: len(feats[-1])], : self.cin] = feats[-1]
        both[plan.inverse[len(feats[-1]) :], self.cin :] = plan.sides["feats"]
        y, size = matrix_product(weights, both)
        return Wanted(y, 2 * self.cin, size), [same(both)]


# Other voxels


@dataclass
class Prune(Step):
    """The voxels that a mask keeps. The mask follows from coordinates, so that a graph can compute it."""

    modulus: int = 3
    below: int = 2
    mask: str = "bool"
    takes_special = True
    FACTORS: ClassVar = (5, 3, 7, 11)

    @classmethod
    def draw(cls, rng, **common):
        modulus = int(rng.integers(1, 6))
        below = int(rng.integers(0, modulus + 1)) if rng.random() < 0.2 else max(1, modulus - 1)
        return cls(modulus=modulus, below=below, mask=str(rng.choice(["bool", "int8", "uint8", "int32"])), **common)

    def plan(self, plans):
        at = plans[-1].out
        mask = (at.coords.astype("int64") @ self.FACTORS) % self.modulus < self.below
        return Plan(at.moved(at.coords[mask], at.shape), sides={"mask": mask.astype(self.mask)})

    def run(self, layer, tensors, plan):
        x = tensors[-1]
        return sparse_ops.prune(x, to_kind(plan.sides["mask"], kind_of(x.feats))), []

    def trace(self, module, tensors, sides, plan):
        x = tensors[-1]
        factors = relax.op.multiply(x.coords._expr, relax.const(np.array(self.FACTORS, "int32")))
        rest = relax.op.floor_mod(relax.op.sum(factors, 1), relax.const(self.modulus, "int32"))
        mask = emit(relax.op.less(rest, relax.const(self.below, "int32")))
        return nn.prune(x, mask), []

    def expected(self, weights, plan, feats):
        return same(feats[-1][plan.sides["mask"] != 0]), []


@dataclass
class Intersection(Step):
    takes_special = True
    draws_voxels = True

    def plan(self, plans):
        at = plans[-1].out
        other = other_voxels(self.seed, at)
        keep = rows_of(other.coords, at.coords) >= 0
        return Plan(at.moved(at.coords[keep], at.shape), sides={"coords": other.coords}, inverse=keep, other=other)

    def run(self, layer, tensors, plan):
        x = tensors[-1]
        return sparse_ops.intersection(x, tensor_on(plan.other, like=x)), []

    def trace(self, module, tensors, sides, plan):
        return nn.intersection(tensors[-1], nn.Sites(sides["coords"], tensors[-1].sites.batch)), []

    def expected(self, weights, plan, feats):
        return same(feats[-1][plan.inverse]), []


@dataclass
class Downsample(Step):
    """Voxels divided by a factor, and their features reduced."""

    factor: tuple = (2, 2, 2)
    mode: str = "mean"
    count_bias: int = 0
    takes_special = True
    by_row = False  # sums are in the order of rows
    dimensions = (3,)

    @classmethod
    def draw(cls, rng, **common):
        mode = str(rng.choice(pool.SEGMENT_MODES))
        factor = axes_of(rng, common["dims"], (1, [1, 2, 3]), p=[0.15, 0.65, 0.2])
        return cls(factor=factor, mode=mode, count_bias=int(rng.integers(0, 2)) if mode == "mean" else 0, **common)

    def plan(self, plans):
        at = plans[-1].out
        coords, inverse = unique.naive(at.coords, self.factor)
        shape = None if at.shape is None else tuple(-(-n // f) for n, f in zip(at.shape, self.factor, strict=True))
        return Plan(at.anew(coords, shape), source=at, inverse=inverse)

    def run(self, layer, tensors, plan):
        x = tensors[-1]
        coords, inverse = functional.downsample(x.coords, self.factor)
        feats = functional.segment_pool(x.feats, inverse, coords.shape[0], self.mode, self.count_bias)
        return sparse_ops.SparseTensor(feats, coords, plan.out.shape, plan.out.batch), [inverse]

    def trace(self, module, tensors, sides, plan):
        out = nn.Downsample(self.factor, self.mode, self.count_bias)(tensors[-1])
        return out, [out.sites.finer[1]]

    def expected(self, weights, plan, feats):
        reduction, rows = pool.Reduction(self.mode, self.count_bias), plan.out.rows
        values = segment_pool.naive(feats[-1], plan.inverse, rows, reduction)
        if self.mode in ("max", "first"):
            return same(values), [same(plan.inverse)]
        squares = segment_pool.naive(feats[-1].astype("float64") ** 2, plan.inverse, rows, pool.Reduction("sum"))
        return Wanted(values, int(np.prod(self.factor)) + 1, np.sqrt(squares)), [same(plan.inverse)]


@dataclass
class Upsample(Step):
    """Back to the voxels that downsampling came from."""

    factor: tuple = (2, 2, 2)
    takes_special = True
    dimensions = (3,)

    def bound(self, rng, plans):
        ref = downsampling(plans)
        return None if ref is None else replace(super().bound(rng, plans), ref=ref)

    def plan(self, plans):
        undone = plans[self.ref]
        return Plan(undone.source, inverse=undone.inverse)

    def run(self, layer, tensors, plan):
        x, finer = tensors[-1], tensors[self.ref - 1]
        inverse = to_kind(plan.inverse, kind_of(x.feats))
        return finer.replace_feature(functional.gather_rows(x.feats, inverse)), []

    def trace(self, module, tensors, sides, plan):
        return nn.Upsample()(tensors[-1]), []

    def expected(self, weights, plan, feats):
        return same(feats[-1][plan.inverse]), []


@dataclass
class UpsampledConvolution(Step):
    """A convolution of what is upsampled to the voxels that downsampling came from, without these rows."""

    kernel: tuple = (3, 3, 3)
    bias: bool = True
    activation: str = "none"
    dimensions = (3,)

    @classmethod
    def draw(cls, rng, **common):
        activation = str(rng.choice(list(ACTIVATIONS))) if rng.random() < 0.4 else "none"
        kernel = axes_of(rng, common["dims"], (1, [1, 3]), p=[0.2, 0.8])
        if max(kernel) == 1:  # which is a matrix, as spconv has it
            kernel = (1, 1, 3)
        return cls(kernel=kernel, bias=bool(rng.random() < 0.7), activation=activation, **common)

    def bound(self, rng, plans):
        ref = downsampling(plans)
        return None if ref is None else replace(super().bound(rng, plans), ref=ref)

    def draw_weights(self, rng):
        weights = {"weight": random(rng, (self.cout, *self.kernel, self.cin), self.dtype, 1 / sqrt(self.cin * 6))}
        return weights | ({"bias": random(rng, self.cout, "float32", 0.3)} if self.bias else {})

    def plan(self, plans):
        undone = plans[self.ref]
        at, geometry = undone.source, Geometry.submanifold(self.kernel)
        return Plan(at, table=table(at.coords, at.coords, geometry), inverse=undone.inverse)

    def layer(self, weights):
        return sparse_ops.Weights(weights["weight"], weights.get("bias"))

    def run(self, layer, tensors, plan):
        x, finer = tensors[-1], tensors[self.ref - 1]
        parent = to_kind(plan.inverse, kind_of(x.feats))
        kernel_map = finer.kernel_map(self.kernel, (1, 1, 1))
        feats = functional.upsampled_conv(x.feats, layer, kernel_map, parent, activation=self.activation)
        return finer.replace_feature(feats), []

    def module(self):
        return nn.SubMConv3d(self.cin, self.cout, self.kernel, bias=self.bias, dtype=self.dtype)

    def trace(self, module, tensors, sides, plan):
        return module.of_upsampled(tensors[-1], tensors[-1].sites.finer, activation=self.activation), []

    def expected(self, weights, plan, feats):
        weight = weights["weight"].reshape(self.cout, -1, self.cin)
        y, size = conv(feats[-1][plan.inverse], weight, plan.table, weights.get("bias"))
        return Wanted(ACTIVATIONS[self.activation](y), weight.shape[1] * self.cin + 1, size), []


def downsampling(plans: list[Plan]) -> int | None:
    """The step that led from finer voxels to those of the last tensor."""
    found = [
        i for i, plan in enumerate(plans) if plan.out is plans[-1].out and plan.source is not None and plan.geometry is None
    ]
    return found[-1] if found else None


@dataclass
class Subdivide(Step):
    factor: tuple = (2, 2, 2)
    takes_special = True
    dimensions = (3,)

    @classmethod
    def draw(cls, rng, **common):
        return cls(factor=axes_of(rng, common["dims"], (1, [1, 2, 3]), p=[0.3, 0.6, 0.1]), **common)

    def plan(self, plans):
        at = plans[-1].out
        children = int(np.prod(self.factor))
        shape = None if at.shape is None else tuple(n * f for n, f in zip(at.shape, self.factor, strict=True))
        coords = subdivide.naive(at.coords, self.factor)
        return Plan(at.anew(coords, shape), inverse=np.repeat(np.arange(at.rows, dtype="int32"), children))

    def run(self, layer, tensors, plan):
        x = tensors[-1]
        coords = functional.subdivide(x.coords, self.factor)
        feats = functional.gather_rows(x.feats, to_kind(plan.inverse, kind_of(x.feats)))
        return sparse_ops.SparseTensor(feats, coords, plan.out.shape, plan.out.batch), []

    def trace(self, module, tensors, sides, plan):
        return nn.Subdivide(self.factor)(tensors[-1]), []

    def expected(self, weights, plan, feats):
        return same(feats[-1][plan.inverse]), []


# Attention


@dataclass
class WindowAttention(Step):
    """Attention of rows to those of their window of voxels: the features are queries, keys and values at once."""

    window: tuple = (4, 4, 4)
    shift: tuple = (0, 0, 0)
    heads: int = 1
    by_row = False  # keys are summed up in the order of rows
    dimensions = (3,)

    @classmethod
    def draw(cls, rng, **common):
        divisors = [h for h in range(1, common["cin"] + 1) if common["cin"] % h == 0]
        window = axes_of(rng, common["dims"], (1, [2, 4, 7]))
        shift = tuple(int(rng.integers(0, w)) for w in window)
        return cls(window=window, shift=shift, heads=int(rng.choice(divisors)), **common)

    def plan(self, plans):
        at = plans[-1].out
        order, offsets = windows.naive(at.coords, self.window, self.shift)
        return Plan(at, sides={}, table=(order, offsets, order, offsets))

    def run(self, layer, tensors, plan):
        x = tensors[-1]
        order, offsets = functional.window_partition(x.coords, self.window, self.shift)
        return self._attend(x, order, offsets, order, offsets), [order, offsets]

    def _attend(self, x, q_order, q_offsets, k_order, k_offsets):
        feats = reshape(x.feats, (x.feats.shape[0], self.heads, self.cin // self.heads))
        out = functional.attention(feats, feats, feats, q_offsets, k_offsets, q_order=q_order, k_order=k_order)
        return x.replace_feature(reshape(out, (x.feats.shape[0], self.cin)))

    def trace(self, module, tensors, sides, plan):
        x = tensors[-1]
        partition = x.sites.windows(self.window, self.shift)
        return self._attend_in_graph(x, partition), [partition.q_order, partition.q_offsets]

    def _attend_in_graph(self, x, partition):
        feats = heads_of(x.feats, self.heads)
        q_order, q_offsets, k_order, k_offsets = partition.fields
        out = nn.attention(feats, feats, feats, q_offsets, k_offsets, q_order=q_order, k_order=k_order)
        return x.with_feats(rows_of_heads(out))

    def expected(self, weights, plan, feats):
        order, offsets, _, _ = plan.table
        return self._wanted(plan, feats[-1]), [same(order), same(offsets)]

    def _wanted(self, plan, x):
        q_order, q_offsets, k_order, k_offsets = plan.table
        parts = x.astype("float64").reshape(len(x), self.heads, self.cin // self.heads)
        values = attention.naive(parts, parts, parts, q_offsets, k_offsets, q_order=q_order, k_order=k_order)
        norms = np.linalg.norm(parts, axis=2)
        logit = float((norms.max(initial=0) ** 2) / sqrt(parts.shape[2]))
        keys = int(np.diff(k_offsets).max(initial=0))
        return Wanted(
            values.reshape(x.shape), 16 + logit**2 + keys + parts.shape[2], np.abs(x.astype("float64")).max(initial=0)
        )


@dataclass
class SerialAttention(WindowAttention):
    """Attention within overlapping windows along a curve."""

    size: int = 16
    move: int = 0
    mode: str = "z_order"
    curve_shift: tuple = (0, 0, 0)
    bits: int = serialize.BITS

    @classmethod
    def draw(cls, rng, **common):
        divisors = [h for h in range(1, common["cin"] + 1) if common["cin"] % h == 0]
        return cls(
            heads=int(rng.choice(divisors)),
            size=int(rng.choice([1, 5, 16, 48])),
            move=int(rng.choice([0, 3, 24])),
            mode=str(rng.choice(serialize.MODES)),
            curve_shift=tuple(int(n) for n in rng.integers(0, 4, 3)),
            bits=int(rng.choice([10, 13, 16])),
            **common,
        )

    def plan(self, plans):
        at = plans[-1].out
        if not on_curve(at, self.curve_shift, self.bits):
            return Plan(at, refusal="coords")
        code = serialize.naive(at.coords, self.mode, self.curve_shift, self.bits)
        return Plan(at, table=serialize.naive_partition(at.coords, code, self.size, self.move))

    def run(self, layer, tensors, plan):
        x = tensors[-1]
        found = functional.serialized_partition(x.coords, self.size, self.move, self.curve_shift, self.mode, self.bits)
        return self._attend(x, *found), [*found]

    def trace(self, module, tensors, sides, plan):
        x = tensors[-1]
        partition = x.sites.serialized(self.size, self.move, self.curve_shift, self.mode, self.bits)
        return self._attend_in_graph(x, partition), [*partition.fields]

    def expected(self, weights, plan, feats):
        return self._wanted(plan, feats[-1]), [same(part) for part in plan.table]


def on_curve(at: Voxels, shift, bits: int) -> bool:
    """Whether codes of so many bits an axis hold all voxels."""
    places = at.coords[:, 1:] + np.array(shift)
    return not len(places) or bool((places >= 0).all() and (places < 1 << bits).all())


# What only looks


@dataclass
class GlobalPool(Step):
    mode: str = "mean"
    probes = True
    by_row = False
    takes_special = True

    @classmethod
    def draw(cls, rng, **common):
        return cls(mode=str(rng.choice(pool.MODES)), **common)

    def layer(self, weights):
        return {"max": sparse_ops.GlobalMaxPool, "mean": sparse_ops.GlobalAvgPool, "sum": sparse_ops.GlobalSumPool}[self.mode]()

    def run(self, layer, tensors, plan):
        return tensors[-1], [layer(tensors[-1])]

    def trace(self, module, tensors, sides, plan):
        return tensors[-1], [nn.BatchPool(self.mode)(tensors[-1])]

    def expected(self, weights, plan, feats):
        index, batch = plan.out.coords[:, 0], plan.out.batch
        values = segment_pool.naive(feats[-1], index, batch, pool.Reduction(self.mode))
        if self.mode == "max":
            return None, [same(values)]
        squares = segment_pool.naive(feats[-1].astype("float64") ** 2, index, batch, pool.Reduction("sum"))
        count = np.bincount(index, minlength=batch)
        size = np.sqrt(squares) / (np.maximum(count, 1)[:, None] if self.mode == "mean" else 1)
        return None, [Wanted(values, int(count.max(initial=1)), size)]


@dataclass
class Dense(Step):
    """A dense grid of the features, and rows out of it."""

    channels_first: bool = True
    probes = True
    takes_special = True
    by_row = False
    traces = False  # its extents are known to a graph only where they are given

    @classmethod
    def draw(cls, rng, **common):
        return cls(channels_first=bool(rng.random() < 0.5), **common)

    def bound(self, rng, plans):
        at = plans[-1].out
        if at.unbounded or min(at.extent) < 1 or at.batch * self.cin * np.prod(at.extent) > MOST_CELLS:
            return None
        return super().bound(rng, plans)

    def plan(self, plans):
        at = plans[-1].out
        if at.unbounded:
            return Plan(at, refusal="spatial_shape: ")
        if min(at.extent) < 1 or at.batch * self.cin * np.prod(at.extent) > MOST_CELLS:
            return Plan(at, skipped=True)
        return Plan(at)

    def run(self, layer, tensors, plan):
        x = tensors[-1]
        grid = sparse_ops.ToDense(self.channels_first)(x)
        if self.dims < 3:
            return x, [grid]
        coords = as_kind(x.coordinates.coords, kind_of(x.feats))
        return x, [grid, functional.from_dense(grid, coords, not self.channels_first)]

    def expected(self, weights, plan, feats):
        at, (x, axis) = plan.out, (feats[-1], 1 if self.channels_first else -1)
        grid = dense.naive_to_dense(x, at.coords, at.batch, at.extent, channels_last=True)
        grid = grid.reshape(at.batch, *at.extent[3 - self.dims :], -1)
        return None, [same(np.moveaxis(grid, -1, axis)), same(x)][: 1 + (self.dims == 3)]


@dataclass
class Serialize(Step):
    """Codes along a curve."""

    mode: str = "z_order"
    shift: tuple = (0, 0, 0)
    bits: int = serialize.BITS
    probes = True
    takes_special = True
    dimensions = (3,)

    @classmethod
    def draw(cls, rng, **common):
        shift = tuple(int(n) for n in rng.integers(0, 9, 3))
        return cls(mode=str(rng.choice(serialize.MODES)), shift=shift, bits=int(rng.choice([8, 10, 16])), **common)

    def plan(self, plans):
        at = plans[-1].out
        return Plan(at, refusal=None if on_curve(at, self.shift, self.bits) else "coords")

    def run(self, layer, tensors, plan):
        return tensors[-1], [functional.serialize(tensors[-1].coords, self.mode, self.shift, self.bits)]

    def trace(self, module, tensors, sides, plan):
        return tensors[-1], [emit(op.serialize(tensors[-1].coords._expr, self.mode, self.shift, self.bits))]

    def expected(self, weights, plan, feats):
        return None, [same(serialize.naive(plan.out.coords, self.mode, self.shift, self.bits))]


@dataclass
class Lookup(Step):
    probes = True
    takes_special = True
    by_row = False  # row numbers
    dimensions = (3,)

    def plan(self, plans):
        at = plans[-1].out
        rng = np.random.default_rng(self.seed)
        count = 50 if at.rows else 0
        near = at.coords[rng.integers(0, max(at.rows, 1), count)] + rng.integers(-1, 2, (count, 4))
        return Plan(at, sides={"queries": near.astype("int32")})

    def run(self, layer, tensors, plan):
        x = tensors[-1]
        return x, [functional.lookup(x.coords, to_kind(plan.sides["queries"], kind_of(x.feats)))]

    def trace(self, module, tensors, sides, plan):
        return tensors[-1], [emit(op.lookup(tensors[-1].coords._expr, sides["queries"]._expr))]

    def expected(self, weights, plan, feats):
        return None, [same(rows_of(plan.out.coords, plan.sides["queries"]))]


@dataclass
class Devoxelize(Step):
    """Features at points, some of which lie outside of all voxels."""

    mode: str = "trilinear"
    stride: tuple = (1, 1, 1)
    normalize: bool = True
    probes = True
    dimensions = (3,)

    @classmethod
    def draw(cls, rng, **common):
        return cls(
            mode=str(rng.choice(["trilinear", "nearest"])),
            stride=axes_of(rng, 3, (1, [1, 2, 4]), p=[0.6, 0.3, 0.1]),
            normalize=bool(rng.random() < 0.7),
            **common,
        )

    def plan(self, plans):
        at = plans[-1].out
        rng = np.random.default_rng(self.seed)
        size, origin = rng.choice([0.25, 0.1, 1, 0.3], 3), rng.choice([0, -1.5, 0.7], 3)
        count = int(rng.choice([0, 1, 65, 200]))
        near = at.coords[np.argsort(keys(at.coords))][rng.integers(0, at.rows, count)] if at.rows else np.zeros((count, 4), int)
        points = ((near[:, 1:] * self.stride + rng.uniform(-0.7, 1.7, (count, 3))) * size + origin).astype("float32")
        sides = {"points": points, "batch_index": near[:, 0].astype("int32")}
        grid = size.astype("float32"), origin.astype("float32")
        cells = np.floor(quantize.positions(points, *grid))
        inside = (cells >= -COORDINATE_LIMIT).all() and (cells < COORDINATE_LIMIT).all()
        return Plan(at, sides=sides, table=grid, refusal=None if inside else "points")

    def run(self, layer, tensors, plan):
        x = tensors[-1]
        points, batch_index = (to_kind(plan.sides[name], kind_of(x.feats)) for name in ("points", "batch_index"))
        size, origin = (tuple(map(float, array)) for array in plan.table)
        out = sparse_ops.devoxelize(x, points, size, batch_index, self.mode, origin, self.stride, self.normalize)
        return x, [out]

    def trace(self, module, tensors, sides, plan):
        x, (size, origin) = tensors[-1], (tuple(map(float, array)) for array in plan.table)
        out = nn.devoxelize(x, sides["points"], size, sides["batch_index"], self.mode, origin, self.stride, self.normalize)
        return x, [out]

    def expected(self, weights, plan, feats):
        x, (size, origin) = feats[-1].astype("float64"), plan.table
        points, batch = plan.sides["points"], plan.sides["batch_index"]
        if self.mode == "nearest":
            row = rows_of(plan.out.coords, quantize.naive(points, size, batch, origin, self.stride))
            values = np.zeros((len(points), self.cin))
            values[row >= 0] = x[row[row >= 0]]
            return None, [same(values)]
        index, weight = trilinear.naive(plan.out.coords, points, size, batch, origin, self.stride, self.normalize)
        values = interpolate.naive(x, index, weight)
        size = interpolate.naive(x**2, index, weight**2)
        return None, [Wanted(values, 3 + 8 + 8, np.sqrt(size))]


@dataclass
class Voxelize(Step):
    """Points of their own become voxels."""

    mode: str = "mean"
    probes = True
    by_row = False
    dimensions = (3,)

    @classmethod
    def draw(cls, rng, **common):
        return cls(mode=str(rng.choice(pool.SEGMENT_MODES)), **common)

    def plan(self, plans):
        at = plans[-1].out
        rng = np.random.default_rng(self.seed)
        count = int(rng.choice([0, 1, 2, 100, 700]))
        size, origin = rng.choice([0.25, 0.1, 1, 0.3], 3).astype("float32"), rng.choice([0, -1.5, 0.7], 3).astype("float32")
        points = (rng.standard_normal((count, 3)) * 0.5).astype("float32")
        points[::5] = np.round(points[::5] * 4) / 4
        sides = {
            "points": points,
            "feats": random(rng, (count, self.cin), self.dtype),
            "batch_index": rng.integers(0, at.batch, count).astype("int32"),
        }
        return Plan(at, sides=sides, table=(size, origin))

    def run(self, layer, tensors, plan):
        x = tensors[-1]
        points, feats, batch_index = (
            to_kind(plan.sides[name], kind_of(x.feats)) for name in ("points", "feats", "batch_index")
        )
        size, origin = (tuple(map(float, array)) for array in plan.table)
        out, inverse = sparse_ops.voxelize(points, feats, size, batch_index, self.mode, origin, plan.out.batch)
        return x, [out.coords, inverse, out.feats]

    def trace(self, module, tensors, sides, plan):
        size, origin = (tuple(map(float, array)) for array in plan.table)
        arrays = sides["points"], sides["feats"], size, sides["batch_index"]
        out, inverse = nn.voxelize(*arrays, self.mode, origin, tensors[-1].sites.batch)
        return tensors[-1], [out.coords, inverse, out.feats]

    def expected(self, weights, plan, feats):
        points, x, batch = (plan.sides[name] for name in ("points", "feats", "batch_index"))
        coords, inverse = unique.naive(quantize.naive(points, plan.table[0], batch, plan.table[1]))
        values = segment_pool.naive(x, inverse, len(coords), pool.Reduction(self.mode))
        if self.mode in ("max", "first"):
            return None, [same(coords), same(inverse), same(values)]
        squares = segment_pool.naive(x.astype("float64") ** 2, inverse, len(coords), pool.Reduction("sum"))
        return None, [same(coords), same(inverse), Wanted(values, max(np.bincount(inverse), default=1), np.sqrt(squares))]


# Every step with how often it is drawn for a palette; every palette has convolutions.
STEPS: dict[type[Step], float] = {
    Convolution: 0,
    Inverse: 2,
    Pool: 2.5,
    Linear: 1.5,
    BatchNorm: 0.7,
    Activation: 0.7,
    LayerNorm: 0.5,
    GroupNorm: 0.8,
    Add: 1,
    Cat: 0.8,
    SparseAdd: 0.8,
    SparseCat: 0.6,
    Prune: 0.8,
    Intersection: 0.4,
    Downsample: 1,
    Upsample: 0.8,
    UpsampledConvolution: 0.6,
    Subdivide: 0.5,
    WindowAttention: 0.7,
    SerialAttention: 0.5,
    GlobalPool: 0.7,
    Dense: 0.7,
    Serialize: 0.4,
    Lookup: 0.3,
    Devoxelize: 0.5,
    Voxelize: 0.4,
}
