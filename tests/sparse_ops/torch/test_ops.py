"""Our ops as ops of torch: each gives what the eager call gives, and the shapes that torch.export was told."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sparse_ops import functional as F
from sparse_ops.op.signature import MAP_DTYPES
from sparse_ops.torch.callback import pairs_by_tap
from sparse_ops.torch.ops import TORCH_OPS
from tests.sparse_ops.walk import with_threads
from tir_kernels.layout import PairsByBlock

ops = torch.ops.sparse_ops
CHANNELS, HEADS = 8, 2


class Inputs:
    """Tensors that the calls below take: voxels of two batch elements, features on them, maps between them and others."""

    def __init__(self, rows: int = 150):
        rng = np.random.default_rng(rows)
        cells = np.sort(rng.permutation(2 * 6**3)[:rows])
        self.coords = torch.from_numpy(np.stack(np.unravel_index(cells, (2, 6, 6, 6)), 1).astype("int32"))
        self.x = self.normal(rng, rows, CHANNELS)
        self.weight, self.matrix = self.normal(rng, 4, 3, 3, 3, CHANNELS), self.normal(rng, 4, CHANNELS)
        self.bias, self.scale, self.shift = self.normal(rng, 4), self.normal(rng, CHANNELS), self.normal(rng, CHANNELS)
        self.same = F.submanifold_map(self.coords)
        self.strided = F.strided_map(self.coords, 3, 2, 1, 1, (6, 6, 6))
        self.sites = torch.from_numpy(self.strided.coords_out.numpy())
        self.offsets = F.batch_offsets(self.coords, 2)
        self.points = torch.from_numpy(rng.uniform(0, 6, (20, 3)).astype("float32"))
        self.element = torch.zeros(20, dtype=torch.int32)
        self.small = torch.tensor([0.5, 0.25, 1.0])
        self.dense = self.normal(rng, 2, CHANNELS, 6, 6, 6)
        self.index = torch.from_numpy(rng.integers(-1, rows, 40).astype("int32")) if rows else torch.full((40,), -1).int()
        self.heads = self.x.reshape(rows, HEADS, CHANNELS // HEADS)
        self.gamma = self.normal(rng, HEADS, CHANNELS // HEADS)
        self.to_coarse = F.downsample(self.coords, 2)

    @staticmethod
    def normal(rng, *shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape, "float32"))

    def arrays(self, which: str) -> list[torch.Tensor]:
        return [torch.from_numpy(array.numpy()) for array in getattr(self, which).arrays]


# The op's name: (call of the op of torch, the eager call of the same).
CALLS = {
    "submanifold_map": (lambda i: ops.submanifold_map(i.coords, 3, 2), lambda i: F.submanifold_map(i.coords, 3, 2)),
    "strided_map": (
        lambda i: ops.strided_map(i.coords, 3, [2, 1, 2], 1, 1, [6, 6, 6]),
        lambda i: F.strided_map(i.coords, 3, (2, 1, 2), 1, 1, (6, 6, 6)),
    ),
    "kernel_map": (
        lambda i: ops.kernel_map(i.coords, i.sites, 3, 2, 1),
        lambda i: F.kernel_map(i.coords, i.sites, 3, 2, 1),
    ),
    "inverse_map": (lambda i: ops.inverse_map(*i.arrays("strided"), i.coords), lambda i: F.inverse_map(i.strided)),
    "sparse_conv": (
        lambda i: ops.sparse_conv(i.x, i.weight, *i.arrays("strided"), i.sites, i.bias, activation="relu"),
        lambda i: F.sparse_conv(i.x, i.weight, i.strided, i.bias, activation="relu"),
    ),
    "sparse_conv_weight_gradient": (
        lambda i: ops.sparse_conv_weight_gradient(i.x, i.x.new_ones(len(i.sites), 4), *i.arrays("strided"), 3),
        None,
    ),
    "upsampled_conv": (
        lambda i: ops.upsampled_conv(pooled(i), i.weight, *i.arrays("same"), i.to_coarse[1]),
        lambda i: F.upsampled_conv(pooled(i), i.weight, i.same, i.to_coarse[1]),
    ),
    "linear": (
        lambda i: ops.linear(i.x, i.matrix, i.bias, activation="silu"),
        lambda i: F.linear(i.x, i.matrix, i.bias, activation="silu"),
    ),
    "pool": (
        lambda i: ops.pool(i.x, *i.arrays("strided"), i.sites, "max", max_from_zero=True),
        lambda i: F.pool(i.x, i.strided, "max", max_from_zero=True),
    ),
    "segment_pool": (
        lambda i: ops.segment_pool(i.x, i.to_coarse[1], i.to_coarse[0], count_bias=1),
        lambda i: F.segment_pool(i.x, i.to_coarse[1], len(i.to_coarse[0]), count_bias=1),
    ),
    "downsample": (lambda i: ops.downsample(i.coords, [2, 3, 1]), lambda i: F.downsample(i.coords, (2, 3, 1))),
    "union": (
        lambda i: ops.union(torch.cat([i.coords, i.sites]), ends(i)),
        lambda i: F.union(torch.cat([i.coords, i.sites]), ends(i)),
    ),
    "lookup": (lambda i: ops.lookup(i.coords, i.sites), lambda i: F.lookup(i.coords, i.sites)),
    "flatnonzero": (lambda i: ops.flatnonzero(i.x[:, 0] > 0), lambda i: F.flatnonzero((i.x[:, 0] > 0).contiguous())),
    "gather_rows": (lambda i: ops.gather_rows(i.x, i.index), lambda i: F.gather_rows(i.x, i.index)),
    "subdivide": (lambda i: ops.subdivide(i.coords, [1, 2, 2]), lambda i: F.subdivide(i.coords, (1, 2, 2))),
    "to_dense": (
        lambda i: ops.to_dense(i.x, i.coords, 2, [6, 7, 8], True),
        lambda i: F.to_dense(i.x, i.coords, 2, (6, 7, 8), True),
    ),
    "from_dense": (lambda i: ops.from_dense(i.dense, i.coords), lambda i: F.from_dense(i.dense, i.coords)),
    "batch_offsets": (lambda i: ops.batch_offsets(i.coords, 5), lambda i: F.batch_offsets(i.coords, 5)),
    "window_partition": (
        lambda i: ops.window_partition(i.coords, [2, 3, 4], [1, 0, 3]),
        lambda i: F.window_partition(i.coords, (2, 3, 4), (1, 0, 3)),
    ),
    "serialize": (
        lambda i: ops.serialize(i.coords, "hilbert", [1, 2, 3], 16),
        lambda i: F.serialize(i.coords, "hilbert", (1, 2, 3), 16),
    ),
    "serialized_partition": (
        lambda i: ops.serialized_partition(i.coords, 7, 3, mode="hilbert"),
        lambda i: F.serialized_partition(i.coords, 7, 3, mode="hilbert"),
    ),
    "attention": (
        lambda i: ops.attention(i.heads, i.heads, i.heads, i.offsets, i.offsets, 0.3),
        lambda i: F.attention(i.heads, i.heads, i.heads, i.offsets, i.offsets, 0.3),
    ),
    "group_norm": (
        lambda i: ops.group_norm(i.x, i.offsets, i.scale, i.shift, 2, activation="silu"),
        lambda i: F.group_norm(i.x, i.offsets, i.scale, i.shift, 2, activation="silu"),
    ),
    "layer_norm": (lambda i: ops.layer_norm(i.x, i.scale, i.shift), None),
    "rms_norm_heads": (lambda i: ops.rms_norm_heads(i.heads, i.gamma), None),
    "channel_affine": (
        lambda i: ops.channel_affine(i.x, i.scale, i.shift, "relu"),
        lambda i: F.channel_affine(i.x, i.scale, i.shift, "relu"),
    ),
    "quantize": (
        lambda i: ops.quantize(i.points, i.small, i.element),
        lambda i: F.quantize(i.points, (0.5, 0.25, 1.0), i.element),
    ),
    "trilinear": (
        lambda i: ops.trilinear(i.coords, i.points, i.small),
        lambda i: F.trilinear(i.coords, i.points, (0.5, 0.25, 1.0)),
    ),
    "interpolate": (
        lambda i: ops.interpolate(i.x, *ops.trilinear(i.coords, i.points, i.small)),
        lambda i: F.interpolate(i.x, *F.trilinear(i.coords, i.points, (0.5, 0.25, 1.0))),
    ),
}


def pooled(i: Inputs) -> torch.Tensor:
    return ops.segment_pool(i.x, i.to_coarse[1], i.to_coarse[0])


def ends(i: Inputs) -> torch.Tensor:
    return torch.tensor([0, len(i.coords), len(i.coords) + len(i.sites)]).int()


def pairs(arrays: list[torch.Tensor], rows: int) -> list[torch.Tensor]:
    """Of a map onto `rows` rows: what its arrays hold; slots behind the pairs of a block hold anything."""
    pair_in, pair_out, segment, both = arrays
    sides = pairs_by_tap(pair_in, pair_out, segment, PairsByBlock.block_rows(rows))
    return [*(torch.cat(side) for side in sides), segment, both]


def flat(result) -> list[torch.Tensor]:
    """Tensors of a result of either kind of call."""
    if isinstance(result, F.KernelMap):
        arrays = [torch.from_numpy(array.numpy()) for array in result.arrays]
        same_sites = result.coords_out is result.coords_in or result.inverted
        return arrays if same_sites else [torch.from_numpy(result.coords_out.numpy()), *arrays]
    return list(result) if isinstance(result, tuple | list) else [result]


def test_every_op_is_called_here():
    assert set(TORCH_OPS) <= set(CALLS)


@pytest.mark.parametrize("rows", [150, 1, 0])
@pytest.mark.parametrize("name", CALLS)
def test_the_op_gives_what_the_eager_call_gives(name, rows):
    call, eager = CALLS[name]
    if eager is None:  # their kernels are walked by test_registry
        assert all(torch.isfinite(x).all() for x in flat(call(Inputs(rows))))
        return
    inputs = Inputs(rows)
    found, wanted = flat(call(inputs)), flat(eager(inputs))
    if name == "kernel_map":
        wanted = wanted[1:]  # the sites were given
    if name.endswith("_map"):
        found, wanted = ([*x[:-4], *pairs(x[-4:], int(x[-1][1]))] for x in (found, wanted))
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CALLS)
def test_shapes_that_export_is_told_are_those_of_results(name):
    inputs = Inputs()
    real = flat(CALLS[name][0](inputs))
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        for attribute, value in vars(inputs).items():
            if isinstance(value, torch.Tensor):
                setattr(inputs, attribute, mode.from_tensor(value, static_shapes=True))
        inputs.to_coarse = tuple(mode.from_tensor(tensor, static_shapes=True) for tensor in inputs.to_coarse)
        arrays = inputs.arrays
        inputs.arrays = lambda which: [mode.from_tensor(array, static_shapes=True) for array in arrays(which)]
        told = flat(CALLS[name][0](inputs))
    assert len(told) == len(real)
    for a, b in zip(told, real, strict=True):
        assert a.dtype == b.dtype
        assert a.ndim == b.ndim
        for told_size, size in zip(a.shape, b.shape, strict=True):
            assert not isinstance(told_size, int) or told_size == size


def test_a_view_and_a_parameter_are_taken():
    i = Inputs()
    wide = torch.cat([i.x, i.x], 1)
    weight = torch.nn.Parameter(i.weight)
    found = ops.sparse_conv(wide[:, :CHANNELS], weight, *i.arrays("same"), i.coords)
    assert torch.equal(found, F.sparse_conv(i.x, i.weight, i.same))


def test_a_weight_that_is_written_into_counts_at_the_next_call():
    i = Inputs()
    first = ops.sparse_conv(i.x, i.weight, *i.arrays("same"), i.coords)
    i.weight.mul_(2)
    assert torch.equal(ops.sparse_conv(i.x, i.weight, *i.arrays("same"), i.coords), 2 * first)


def test_a_map_that_came_from_an_op_is_the_same_as_its_copies():
    i = Inputs()
    made = ops.submanifold_map(i.coords)
    copies = [array.clone() for array in made]
    a, b = (ops.sparse_conv(i.x, i.weight, *arrays, i.coords) for arrays in (made, copies))
    assert torch.equal(a, b)


def test_bits_do_not_depend_on_threads():
    def call():
        i = Inputs()
        coords, *arrays = ops.strided_map(i.coords, 3, 2, 1, 1, [6, 6, 6])
        return ops.sparse_conv(i.x, i.weight, *arrays, coords)

    assert torch.equal(with_threads(1, call), with_threads(2, call))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda i: ops.submanifold_map(i.coords.long()), r"coords: expected int32 \[any, 4\], given int64"),
        (lambda i: ops.submanifold_map(i.coords, 2), "kernel_size: expected odd sizes"),
        (lambda i: ops.sparse_conv(i.x[:, :4], i.weight, *i.arrays("same"), i.coords), "x: expected 8 channels"),
        (lambda i: ops.sparse_conv(i.x[:5], i.weight, *i.arrays("same"), i.coords), "expected a map from 5 input rows"),
        (lambda i: ops.sparse_conv(i.x.double(), i.weight, *i.arrays("same"), i.coords), "x: expected float32"),
        (lambda i: ops.gather_rows(i.x, torch.tensor([len(i.x)]).int()), "index"),
        (lambda i: ops.to_dense(i.x, i.coords, 1, [6, 6, 6]), "coords: row"),
        (lambda i: ops.pool(i.x, *i.arrays("same"), i.coords, "median"), "mode: expected one of"),
    ],
)
def test_bad_input_is_refused_by_name(call, words):
    with pytest.raises(ValueError, match=words):
        call(Inputs())


def test_a_kernel_map_is_four_tensors_with_the_names_of_the_layout():
    assert list(MAP_DTYPES) == [argument.name for argument in ops.inverse_map.default._schema.arguments][:4]


def test_eager_calls_refuse_what_has_no_numbers():
    with FakeTensorMode() as mode, pytest.raises(ValueError, match=r"coords: expected int32 .* without numbers"):
        F.submanifold_map(mode.from_tensor(Inputs().coords))


def test_calls_that_differ_in_rows_alone_share_what_was_found(monkeypatch):
    """The first call of a kind is checked against the signature; later ones that do not fit it are, too."""
    from sparse_ops.torch import ops as module

    first, second = Inputs(150), Inputs(90)
    ops.sparse_conv(first.x, first.weight, *first.arrays("same"), first.coords)
    checked, original = [], module.prepared
    monkeypatch.setattr(module, "prepared", lambda *args: checked.append(args[0]) or original(*args))
    found = ops.sparse_conv(second.x, second.weight, *second.arrays("same"), second.coords)
    assert torch.equal(found, F.sparse_conv(second.x, second.weight, second.same)) and not checked
    for wrong in (second.x[:, :4], second.x.double(), second.x[None]):
        with pytest.raises(ValueError, match="x: expected"):
            ops.sparse_conv(wrong, second.weight, *second.arrays("same"), second.coords)
    with pytest.raises(ValueError, match="residual: expected"):
        ops.sparse_conv(second.x, second.weight, *second.arrays("same"), second.coords, None, second.x[:7, :4].contiguous())
    assert checked


def test_the_instruction_set_in_scope_counts(isa_of_float32):
    i = Inputs()
    found = ops.sparse_conv(i.x, i.weight, *i.arrays("same"), i.coords)
    assert torch.equal(found, F.sparse_conv(i.x, i.weight, i.same))


def altered(place: int, change):
    """A convolution through the map of the inputs with one of its arrays changed, as a copy or in place."""

    def call(i: Inputs, in_place: bool):
        arrays = list(ops.submanifold_map(i.coords))
        if in_place:
            arrays[place].copy_(change(arrays[place]))
        else:
            arrays[place] = change(arrays[place])
        return ops.sparse_conv(i.x, i.weight, *arrays, i.coords)

    return call


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (altered(0, lambda pair_in: pair_in + 10**9), "kernel_map.pair_in: expected rows that there are"),
        (altered(0, lambda pair_in: pair_in - 10**9), "kernel_map.pair_in"),
        (altered(1, lambda pair_out: pair_out + 64), "kernel_map.pair_out"),
        (altered(2, lambda segment: segment + 10**6), "kernel_map.segment: expected numbers that ascend"),
        (altered(2, lambda segment: segment.flip(1)), "kernel_map.segment"),
        (altered(3, lambda rows: rows * 5), "kernel_map.pair_in: expected .* for 750 output rows"),
        (altered(3, lambda rows: -rows), "kernel_map.rows"),
    ],
)
def test_a_map_that_somebody_changed_is_looked_at(call, words, in_place):
    with pytest.raises(ValueError, match=words):
        call(Inputs(), in_place)


def test_arrays_that_are_no_map_are_refused():
    i = Inputs()
    pair_in, pair_out, segment, rows = ops.submanifold_map(i.coords)
    for wrong in (
        (pair_in.long(), pair_out, segment, rows),
        (pair_in[0], pair_out, segment, rows),
        (pair_in, pair_out[:, :9], segment, rows),
        (pair_in, pair_out, segment[:0], rows),
        (pair_in, pair_out, segment, rows[:1]),
    ):
        with pytest.raises(ValueError, match=r"kernel_map\.\w+: expected"):
            ops.sparse_conv(i.x, i.weight, *wrong, i.coords)


def test_layers_go_past_torchs_dispatcher_only_where_nobody_can_tell(monkeypatch):
    from torch.utils._python_dispatch import TorchDispatchMode

    from sparse_ops.torch.ops import CALLS

    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    i = Inputs()
    arrays, weight = i.arrays("same"), i.weight.clone().requires_grad_()
    wanted = F.sparse_conv(i.x, i.weight, i.same)
    with torch.no_grad():
        assert torch.equal(CALLS["sparse_conv"](i.x, weight, *arrays, i.coords), wanted)
        with Watching():
            assert torch.equal(CALLS["sparse_conv"](i.x, weight, *arrays, i.coords), wanted)
        with torch.profiler.profile() as profile:
            CALLS["sparse_conv"](i.x, weight, *arrays, i.coords)
    assert "sparse_ops.sparse_conv.default" in seen
    assert "sparse_ops::sparse_conv" in {event.key for event in profile.key_averages()}
    CALLS["sparse_conv"](i.x, weight, *arrays, i.coords).sum().backward()
    assert weight.grad is not None
