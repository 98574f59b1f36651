"""Gradients of our ops of torch: against dense convolution in float64, central differences, numpy; and what is refused."""

from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import sparse_ops.torch.ops  # noqa: E402, F401
from sparse_ops.testing.examples import voxels  # noqa: E402
from sparse_ops.torch.gradients import GRADIENTS  # noqa: E402
from sparse_ops.torch.ops import TORCH_OPS  # noqa: E402
from tests.sparse_ops.walk import with_threads  # noqa: E402
from tests.tolerance import assert_close, tolerance  # noqa: E402

OPS = torch.ops.sparse_ops
BATCH, SIDE = 2, 6


def sites(rows: int) -> torch.Tensor:
    """int32 [rows, 4]: voxels in `BATCH` grids of `SIDE` cells, in random order."""
    cells = np.random.default_rng(rows).permutation(BATCH * SIDE**3)[:rows]
    axes = [cells // SIDE**3, *(cells // SIDE**axis % SIDE for axis in (2, 1, 0))]
    return torch.from_numpy(np.stack(axes, 1).astype("int32"))


def drawn(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# --- convolutions, against torch's in float64 --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A convolution: `kind` "submanifold", "strided", "transposed" or "inverse" of a strided one."""

    kind: str
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    def built(self, coords):
        """(sites in, sites out, kernel map)"""
        if self.kind == "submanifold":
            return coords, coords, OPS.submanifold_map(coords, [self.kernel] * 3, [self.dilation] * 3)
        axes = [[size] * 3 for size in (self.kernel, self.stride, self.padding, self.dilation)]
        out, *kernel_map = OPS.strided_map(coords, *axes, [SIDE] * 3, self.kind == "transposed")
        if self.kind == "inverse":
            return out, coords, OPS.inverse_map(*kernel_map, coords)
        return coords, out, kernel_map

    def dense(self, grid, weight):
        """float64 [B, Cout, ...], of a grid and a weight [Cout, kx, ky, kz, Cin / groups]; onto `SIDE` cells or more."""
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        if self.kind == "submanifold":
            options["padding"] = self.kernel // 2 * self.dilation
        if self.kind in ("submanifold", "strided"):
            return torch.nn.functional.conv3d(grid, weight.permute(0, 4, 1, 2, 3), **options)
        cout, *kernel, depth = weight.shape
        by_group = weight.view(self.groups, cout // self.groups, *kernel, depth).permute(0, 5, 1, 2, 3, 4)
        spread = by_group.reshape(self.groups * depth, cout // self.groups, *kernel)
        options["padding"] = 0  # what is cut off is cut off at the front alone: an inverse restores all cells
        rest = slice(self.padding, None)
        out = torch.nn.functional.conv_transpose3d(grid, spread, **options)[:, :, rest, rest, rest]
        return torch.nn.functional.pad(out, [0, max(0, SIDE - out.shape[-1])] * 3)


LAYERS = [
    Layer("submanifold", 3),
    Layer("submanifold", 3, dilation=2),
    Layer("submanifold", 3, groups=2),
    Layer("submanifold", 3, groups=4),
    Layer("strided", 3, 2, 1),
    Layer("strided", 2, 2),
    Layer("strided", 3, 2, 1, groups=2),
    Layer("transposed", 2, 2),
    Layer("transposed", 3, 2, 1),
    Layer("inverse", 2, 2),
    Layer("inverse", 3, 2, 1, groups=2),
]
CASES = [(layer, torch.float32) for layer in LAYERS]
CASES += [(layer, dtype) for layer in (LAYERS[0], LAYERS[6]) for dtype in (torch.bfloat16, torch.float16)]
CIN, COUT = 4, 8


def dense_gradients(layer, places, out_places, given, activation):
    """Gradients in float64, of voxels put into a grid; `given`: x, weight, bias, residual, gradient."""
    x, weight, bias, residual = (tensor.double().requires_grad_() for tensor in given[:4])
    side = (SIDE + layer.padding * 2 - layer.kernel) // layer.stride + 1 if layer.kind == "inverse" else SIDE
    grid = torch.zeros(BATCH, side, side, side, CIN, dtype=torch.float64).index_put(tuple(places.long().T), x)
    out = layer.dense(grid.permute(0, 4, 1, 2, 3), weight).permute(0, 2, 3, 4, 1)
    y = out[tuple(out_places.long().T)] + bias + residual
    y = torch.relu(y) if activation == "relu" else y
    return torch.autograd.grad(y, (x, weight, bias, residual), given[4].double())


@pytest.mark.parametrize(("layer", "dtype"), CASES, ids=str)
def test_convolutions_as_torchs_dense_ones(layer, dtype):
    places, out_places, kernel_map = layer.built(sites(90))
    activation = "relu" if layer.groups == 1 else "none"
    given = [
        drawn(len(places), CIN, dtype=dtype),
        drawn(COUT, *[layer.kernel] * 3, CIN // layer.groups, seed=1, dtype=dtype),
        drawn(COUT, seed=2),
        drawn(len(out_places), COUT, seed=3, dtype=dtype),
        drawn(COUT, len(out_places), seed=4, dtype=dtype).T,  # a gradient whose rows are not contiguous
    ]
    expected = dense_gradients(layer, places, out_places, given, activation)
    x, weight, bias, residual = (tensor.clone().requires_grad_() for tensor in given[:4])
    y = OPS.sparse_conv(x, weight, *kernel_map, out_places, bias, residual, activation, layer.groups)
    y.backward(given[4])
    depths = {"x": layer.kernel**3 * COUT, "weight": len(places), "bias": len(out_places), "residual": 1}
    for (name, depth), own, theirs in zip(depths.items(), (x, weight, bias, residual), expected, strict=True):
        assert own.grad.dtype == own.dtype
        narrow = own.dtype != torch.float32  # sums are float32: it is rounded once, when it is stored
        name_of = str(own.dtype).removeprefix("torch.")
        assert_close(own.grad.double(), theirs, 1 if narrow else depth, dtype=np.dtype(name_of), name=name)


# --- all formulas, against central differences -------------------------------------------------------------------------------

ROWS = 7


def a_map(kernel: int = 3):
    coords = sites(ROWS)
    return coords, OPS.submanifold_map(coords, [kernel, 1, kernel])


def _conv(coords=None):
    coords, kernel_map = a_map()
    given = drawn(ROWS, 2), drawn(3, 3, 1, 3, 2, seed=1), drawn(3, seed=2), drawn(ROWS, 3, seed=3)
    return lambda x, w, b, r: OPS.sparse_conv(x, w, *kernel_map, coords, b, r), given


def _upsampled():
    _, kernel_map = a_map()
    parent = torch.tensor([0, 2, 1, 1, -1, 0, 1], dtype=torch.int32)
    given = drawn(4, 2), drawn(3, 3, 1, 3, 2, seed=1), drawn(3, seed=2), drawn(ROWS, 3, seed=3)
    return lambda x, w, b, r: OPS.upsampled_conv(x, w, *kernel_map, parent, b, r), given


def _linear():
    given = drawn(ROWS, 2), drawn(3, 2, seed=1), drawn(3, seed=2), drawn(ROWS, 3, seed=3)
    return lambda x, w, b, r: OPS.linear(x, w, b, r), given


def _pool(**options):
    def case():
        out, *kernel_map = OPS.strided_map(sites(ROWS), [3] * 3, [2] * 3, [1] * 3)
        return lambda x: OPS.pool(x, *kernel_map, out, **options), (drawn(ROWS, 2),)

    return case


def _segment_pool(**options):
    def case():
        index = torch.tensor([0, 2, 2, 4, -1, 0, 4], dtype=torch.int32)
        return lambda x: OPS.segment_pool(x, index, sites(5), **options), (drawn(ROWS, 2),)

    return case


def _gather_rows():
    index = torch.tensor([3, 3, -1, 0, 6], dtype=torch.int32)
    return lambda x: OPS.gather_rows(x, index), (drawn(ROWS, 2),)


def _to_dense(last):
    coords = sites(4)
    return lambda: (lambda x: OPS.to_dense(x, coords, BATCH, [SIDE] * 3, last), (drawn(4, 1),))


def _from_dense(last):
    coords = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.int32)
    shape = (2, 2, 1, 2, 3) if last else (2, 3, 2, 1, 2)
    return lambda: (lambda dense: OPS.from_dense(dense, coords, last), (drawn(*shape),))


def _interpolate():
    index = torch.tensor([[0, 3, 3], [-1, 2, 1], [-1, -1, -1], [6, 0, -1]], dtype=torch.int32)
    return lambda x, weight: OPS.interpolate(x, index, weight), (drawn(ROWS, 2), drawn(4, 3, seed=1))


def _channel_affine():
    return OPS.channel_affine, (drawn(3, 2), drawn(2, seed=1), drawn(2, seed=2))


LINEAR = {
    "sparse_conv": _conv,
    "upsampled_conv": _upsampled,
    "linear": _linear,
    "pool sum": _pool(mode="sum"),
    "pool mean": _pool(mode="mean"),
    "pool mean, biased": _pool(mode="mean", count_bias=1),
    "segment_pool sum": _segment_pool(mode="sum"),
    "segment_pool mean": _segment_pool(mode="mean", count_bias=2),
    "segment_pool first": _segment_pool(mode="first"),
    "gather_rows": _gather_rows,
    "to_dense": _to_dense(False),
    "to_dense, channels last": _to_dense(True),
    "from_dense": _from_dense(False),
    "from_dense, channels last": _from_dense(True),
    "interpolate": _interpolate,
    "channel_affine": _channel_affine,
}


@pytest.mark.filterwarnings("ignore:Input #:UserWarning")  # that it is not float64, which our ops do not take
@pytest.mark.parametrize("case", LINEAR)
def test_gradcheck(case):
    """All of these are linear in each argument, so a central difference of any step is exact but for rounding.

    A step of 1 is as large as the values, and the error of a quotient that of two results, halved.
    """
    call, given = LINEAR[case]()
    given = tuple(tensor.requires_grad_() for tensor in given)
    scale = 1 + float(call(*given).detach().abs().max())
    depth = max(tensor.numel() for tensor in given)
    assert torch.autograd.gradcheck(call, given, eps=1.0, atol=tolerance("float32", depth, scale), rtol=0)


def test_every_op_is_looked_at():
    whole = {"submanifold_map", "strided_map", "kernel_map", "inverse_map", "downsample", "union", "lookup", "flatnonzero"}
    whole |= {"subdivide", "batch_offsets", "window_partition", "serialize", "serialized_partition", "quantize"}
    assert {case.split()[0].strip(",") for case in LINEAR} == set(GRADIENTS)
    assert set(GRADIENTS) | set(REFUSED) | whole == set(TORCH_OPS)


# --- maxima ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_zero", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_maxima_give_their_gradient_to_every_row_that_is_equal(from_zero, dtype):
    coords = sites(150)
    out, *kernel_map = OPS.strided_map(coords, [3] * 3, [2] * 3, [1] * 3)
    x = torch.randint(-2, 3, (150, 5), generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    gradient = torch.randint(-9, 9, (len(out), 5), generator=torch.Generator().manual_seed(1)).to(dtype)
    y = OPS.pool(x, *kernel_map, out, "max", 0, from_zero)
    y.backward(gradient)
    expected, ties = np.zeros((150, 5)), 0
    values = x.detach().float().numpy()
    for row, place in enumerate(out.numpy()):
        near = np.abs(coords.numpy()[:, 1:] - 2 * place[1:]).max(1) <= 1
        rows = np.flatnonzero(near & (coords.numpy()[:, 0] == place[0]))
        largest = np.maximum(values[rows].max(0), 0 if from_zero else -np.inf)
        hit = values[rows] == largest
        ties += int((hit.sum(0) > 1).sum())
        expected[rows] += np.where(hit, gradient[row].float().numpy(), 0)
    assert ties > 10
    np.testing.assert_array_equal(x.grad.float(), expected)  # sums of small integers


def test_maxima_of_segments():
    index = torch.tensor([0, 0, 1, 1, -1, 1], dtype=torch.int32)
    x = torch.tensor([[1.0], [3], [5], [5], [9], [4]], requires_grad=True)
    OPS.segment_pool(x, index, sites(3), "max").backward(torch.tensor([[2.0], [3], [4]]))
    assert x.grad.flatten().tolist() == [0, 2, 3, 3, 0, 0]


# --- what is asked for, and how ----------------------------------------------------------------------------------------------


class Recorded(TorchDispatchMode):
    """The names of our ops that run inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "sparse_ops":
            self.names.append(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("needs", "ops"),
    [
        ({"x"}, ["inverse_map", "sparse_conv"]),
        ({"weight"}, ["sparse_conv_weight_gradient"]),
        ({"bias"}, ["segment_pool"]),
        ({"residual"}, []),
    ],
)
def test_only_what_is_needed_is_computed(needs, ops):
    coords = sites(23)
    kernel_map = OPS.submanifold_map(coords, [3] * 3)
    shapes = {"x": (23, 2), "weight": (3, 3, 3, 3, 2), "bias": (3,), "residual": (23, 3)}
    given = {name: drawn(*shape).requires_grad_(name in needs) for name, shape in shapes.items()}
    y = OPS.sparse_conv(given["x"], given["weight"], *kernel_map, coords, given["bias"], given["residual"])
    with Recorded() as recorded:
        y.sum().backward()
    assert recorded.names == ops
    assert {name for name, tensor in given.items() if tensor.grad is not None} == needs


def test_layers_on_one_map_share_its_inverse():
    coords = sites(40)
    kernel_map = OPS.submanifold_map(coords, [3] * 3)
    x, weight = drawn(40, 2).requires_grad_(), drawn(2, 3, 3, 3, 2)
    y = OPS.sparse_conv(OPS.sparse_conv(x, weight, *kernel_map, coords), weight, *kernel_map, coords)
    with Recorded() as recorded:
        y.sum().backward(retain_graph=True)
        kernel_map[0].add_(0)  # may be another map now
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    assert recorded.names == ["inverse_map", "sparse_conv", "sparse_conv"]


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows):
    coords = sites(rows)
    kernel_map = OPS.submanifold_map(coords, [3] * 3)
    x, weight, bias = drawn(rows, 2).requires_grad_(), drawn(3, 3, 3, 3, 2).requires_grad_(), drawn(3).requires_grad_()
    y = OPS.sparse_conv(x, weight, *kernel_map, coords, bias, activation="relu")
    y = OPS.linear(y, drawn(2, 3).requires_grad_())
    y = OPS.segment_pool(y, torch.zeros(rows, dtype=torch.int32), sites(1))
    OPS.gather_rows(y, torch.zeros(2, dtype=torch.int32)).sum().backward()
    assert x.grad.shape == (rows, 2) and weight.grad.shape == weight.shape
    assert rows or not (weight.grad.any() or bias.grad.any())


def small_network(coords, parameters, x):
    """Two convolutions, a pool and a linear layer, with one of each kind of argument."""
    first, second, last, bias = parameters
    kernel_map = OPS.submanifold_map(coords, [3] * 3)
    y = OPS.sparse_conv(x, first, *kernel_map, coords, bias, activation="relu")
    y = OPS.sparse_conv(y, second, *kernel_map, coords, residual=x)
    out, *down = OPS.strided_map(coords, [2] * 3, [2] * 3)
    pooled = OPS.pool(y, *down, out, "mean")
    y = OPS.pool(pooled, *OPS.inverse_map(*down, coords), coords, "sum") + y
    return OPS.linear(y, last, bias)


def network_gradients(wrap=lambda function, *args: function(*args)):
    coords = torch.from_numpy(voxels(np.random.default_rng(0), 700, low=0))
    parameters = drawn(16, 3, 3, 3, 16), drawn(16, 3, 3, 3, 16, seed=1), drawn(16, 16, seed=2), drawn(16, seed=3)
    parameters = [parameter.requires_grad_() for parameter in parameters]
    x = drawn(700, 16, seed=4).requires_grad_()
    (wrap(small_network, coords, parameters, x) ** 2).sum().backward()
    return [tensor.grad for tensor in (x, *parameters)]


def test_same_bits_with_any_number_of_threads():
    """In threads of their own, as autograd may run a backward pass."""
    one, two = with_threads(1, network_gradients), with_threads(2, network_gradients)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


def test_checkpoints_compute_again_what_was_computed():
    def wrap(function, *args):
        return checkpoint(function, *args, use_reentrant=False)

    for a, b in zip(network_gradients(), network_gradients(wrap), strict=True):
        assert torch.equal(a, b)


# --- what is refused ---------------------------------------------------------------------------------------------------------


def _asked(call, *given):
    given = [tensor.requires_grad_() for tensor in given]
    result = call(*given)
    result = result[-1] if isinstance(result, tuple) else result
    result.sum().backward()


def _refused_attention():
    offsets = torch.tensor([0, 5], dtype=torch.int32)
    _asked(lambda q, k, v: OPS.attention(q, k, v, offsets, offsets), *(drawn(5, 2, 4) for _ in range(3)))


def _refused_trilinear():
    size = torch.ones(3)
    _asked(lambda points: OPS.trilinear(sites(5), points, size), torch.rand(4, 3))


def _refused_weight_gradient():
    _, kernel_map = a_map()
    _asked(lambda x: OPS.sparse_conv_weight_gradient(x, x, *kernel_map, [3, 1, 3]), drawn(ROWS, 2))


REFUSED = {
    "attention": (_refused_attention, "or use torch.nn.functional.scaled_dot_product_attention"),
    "group_norm": (
        lambda: _asked(
            lambda x: OPS.group_norm(x, torch.tensor([0, 5], dtype=torch.int32), torch.ones(4), torch.zeros(4), 2), drawn(5, 4)
        ),
        "or use torch.nn.functional.group_norm",
    ),
    "layer_norm": (lambda: _asked(OPS.layer_norm, drawn(5, 4)), "or use torch.nn.functional.layer_norm"),
    "rms_norm_heads": (lambda: _asked(OPS.rms_norm_heads, drawn(5, 2, 4), drawn(2, 4)), "torch.nn.functional.rms_norm"),
    "trilinear": (_refused_trilinear, "or use weights computed in torch"),
    "sparse_conv_weight_gradient": (_refused_weight_gradient, "compute under"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_ops_without_gradient_say_so(name):
    call, words = REFUSED[name]
    message = (
        rf"sparse_ops\.{name}: expected inputs that require no gradient, as this op has none; compute under torch.no_grad\(\)"
    )
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert words in str(error.value)


def test_other_activations_and_gates_are_refused():
    _, kernel_map = a_map()
    weight = drawn(3, 3, 1, 3, 2)
    with pytest.raises(
        ValueError, match=r"sparse_ops\.sparse_conv: activation: expected 'none' or 'relu' .*functional.gelu to"
    ):
        _asked(lambda x: OPS.sparse_conv(x, weight, *kernel_map, sites(ROWS), activation="gelu_tanh"), drawn(ROWS, 2))
    with pytest.raises(ValueError, match=r"sparse_ops\.linear: gate: expected none where a gradient is asked for"):
        _asked(lambda x, gate: OPS.linear(x, drawn(3, 2), gate=gate), drawn(ROWS, 2), drawn(1, 3))


def test_a_gradient_of_a_gradient_is_refused():
    call, given = _conv()
    given = [tensor.requires_grad_() for tensor in given]
    (gradient,) = torch.autograd.grad(call(*given).sum(), given[0], create_graph=True)
    message = "sparse_ops.sparse_conv: gradient: expected to be asked for once, given a gradient of a gradient"
    with pytest.raises(ValueError, match=message):
        gradient.sum().backward()


def test_without_gradients_nothing_is_kept():
    call, given = _conv()
    for tensor in given:
        tensor.requires_grad_()
    with torch.no_grad():
        assert call(*given).grad_fn is None
    with torch.inference_mode():
        assert call(*given).grad_fn is None
