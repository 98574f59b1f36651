"""Graph modules: exported once with symbolic rows, run at any size, against the oracles; maps shared; bad arguments."""

import functools

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.frontend.nn import spec

from sparse_ops import nn
from sparse_ops.build import build, pack_params
from tests.tolerance import assert_close
from tir_kernels.spec import (
    attention,
    gather_rows,
    group_norm,
    layer_norm,
    linear,
    modulated_add,
    pool,
    rms_norm_heads,
    segment_pool,
    sites,
    sparse_conv,
    subdivide,
    unique,
)
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import naive_inverse, naive_table

ROWS = (0, 1, 2, 7, 50, 700)
SUBM = Geometry.submanifold((3, 3, 3))
STRIDED = Geometry((3, 2, 3), (2, 2, 1), (1, 0, 1))
TRANSPOSED = Geometry((2, 2, 2), (2, 2, 2), transposed=True)
WINDOW = Geometry((2, 2, 2), (2, 2, 2))


class Compiled:
    """One exported function, compiled once: `parameters` by name, and `run(*arrays)`."""

    def __init__(self, module, inputs: dict, lift_params: bool, method="forward"):
        self.mod, params = module.export_tvm({method: inputs})
        self.vm = relax.VirtualMachine(build(self.mod, lift_params=lift_params), tvm.cpu())
        self.method = method
        rng = np.random.default_rng(1)
        self.parameters = {name: rng.standard_normal([int(n) for n in p.shape]).astype(_numpy(p.dtype)) for name, p in params}
        tensors = [tvm.runtime.tensor(value) for value in self.parameters.values()]
        self.trailing = pack_params(self.vm, method, tensors.__getitem__) if lift_params else tensors

    def run(self, *arrays):
        out = self.vm[self.method](*(tvm.runtime.tensor(array) for array in arrays), *self.trailing)
        return [array.numpy() for array in out]


def _numpy(dtype) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if str(dtype) == "bfloat16" else str(dtype))


def voxels(rng, rows: int, batch: int, side: int = 9):
    """int32 [rows, 4], distinct, in any order within a batch element; of three elements the last is empty."""
    elements = max(batch - 1, 1)
    cells = np.sort(rng.permutation(elements * side**3)[:rows] // side**3)
    places = [rng.permutation(side**3)[: np.count_nonzero(cells == b)] for b in range(elements)]
    place = np.concatenate(places) if rows else np.zeros(0, int)
    return np.stack([cells, *(place // side**a % side for a in (2, 1, 0))], 1).astype("int32").reshape(-1, 4)


def conv(x, weight, table, bias):
    """The oracle of a convolution, weight [Cout, kx, ky, kz, Cin]."""
    return sparse_conv.naive(x, weight.reshape(weight.shape[0], -1, weight.shape[-1]).transpose(1, 2, 0), table, bias)


def extent_of(coords):
    return tuple(coords[:, 1:].max(0) + 1) if len(coords) else (0, 0, 0)


class Convolutions(nn.Module):
    """Every convolution and pooling layer; each feeds on what a layer before it returned."""

    def __init__(self):
        self.subm = nn.SubMConv3d(5, 8, 3)
        self.again = nn.SubMConv3d(8, 8, 3, bias=False)
        self.point = nn.SubMConv3d(8, 6, 1)
        self.down = nn.SparseConv3d(6, 7, (3, 2, 3), (2, 2, 1), (1, 0, 1), indice_key="down")
        self.up = nn.SparseInverseConv3d(7, 3, (3, 2, 3), "down")
        self.transposed = nn.SparseConvTranspose3d(3, 4, 2, 2, bias=False)
        self.max = nn.SparseMaxPool3d(2, indice_key="max")
        self.max0 = nn.SparseMaxPool3d(2, max_from_zero=True)
        self.mean = nn.SparseAvgPool3d(2, count_bias=1)
        self.unpool = nn.SparseInverseConv3d(8, 2, 2, "max")

    def forward(self, feats, coords):
        x = nn.SymbolicSparseTensor.of(feats, coords)
        subm = self.subm(x, activation="silu")
        again = self.again(subm, residual=subm.feats, activation="relu")
        point = self.point(again)
        down = self.down(point)
        up = self.up(down)
        transposed = self.transposed(up)
        pooled = self.max(subm)
        return (
            *(subm.feats, again.feats, point.feats, down.coords, down.feats, up.feats),
            *(transposed.coords, transposed.feats, pooled.coords, pooled.feats),
            *(self.max0(subm).feats, self.mean(subm).feats, self.unpool(pooled).feats),
        )


@functools.cache
def convolutions() -> Compiled:
    inputs = {"feats": spec.Tensor(["n", 5], "float32"), "coords": spec.Tensor(["n", 4], "int32")}
    return Compiled(Convolutions(), inputs, lift_params=True)


@pytest.mark.parametrize("rows", ROWS)
def test_convolutions_and_pooling(rows):
    rng = np.random.default_rng(rows)
    coords, x = voxels(rng, rows, 3), rng.standard_normal((rows, 5)).astype("float32")
    p = convolutions().parameters
    subm, again, point, down_coords, down, up, wide_coords, wide, pool_coords, *pools = convolutions().run(x, coords)
    table = naive_table(coords, coords, SUBM)
    silu = linear.ACTIVATIONS["silu"]
    assert_close(subm, silu(conv(x, p["subm.weight"], table, p["subm.bias"])), 135, dtype="float32")
    assert_close(again, np.maximum(conv(subm, p["again.weight"], table, None) + subm, 0), 217, dtype="float32")
    # A kernel of one voxel: the memory of the weight [6, 1, 1, 1, 8], read as [8, 6].
    assert_close(point, again.astype("f8") @ p["point.weight"].reshape(8, 6) + p["point.bias"], 9, dtype="float32")

    np.testing.assert_array_equal(down_coords, sites.naive(coords, STRIDED, sites.out_extent(extent_of(coords), STRIDED)))
    table = naive_table(coords, down_coords, STRIDED)
    assert_close(down, conv(point, p["down.weight"], table, p["down.bias"]), 109, dtype="float32")
    inverse = naive_inverse(table, rows)
    assert_close(up, conv(down, p["up.weight"], inverse, p["up.bias"]), 127, dtype="float32")

    extent = sites.out_extent(extent_of(coords), TRANSPOSED)
    np.testing.assert_array_equal(wide_coords, sites.naive(coords, TRANSPOSED, extent))
    table = naive_table(coords, wide_coords, TRANSPOSED)
    assert_close(wide, conv(up, p["transposed.weight"], table, None), 24, dtype="float32")

    np.testing.assert_array_equal(pool_coords, sites.naive(coords, WINDOW, sites.out_extent(extent_of(coords), WINDOW)))
    table = naive_table(coords, pool_coords, WINDOW)
    reductions = (pool.Reduction("max"), pool.Reduction("max", max_from_zero=True), pool.Reduction("mean", 1))
    for got, reduction in zip(pools, reductions, strict=False):
        assert_close(got, pool.naive(subm, table, reduction), 9, dtype="float32")
    inverse = naive_inverse(table, rows)
    assert_close(pools[3], conv(pools[0], p["unpool.weight"], inverse, p["unpool.bias"]), 65, dtype="float32")


class Contained(nn.Module):
    """A sequence with functions between modules, a sum, and the ways out to dense arrays."""

    def __init__(self):
        self.body = nn.SparseSequential(
            nn.SubMConv3d(4, 4, 3),
            lambda feats: feats + feats,
            then=nn.SparseSequential(nn.Activation("relu"), nn.Linear(4, 4)),
        )
        self.out = nn.SparseSequential(nn.ToDense(9))
        self.pools = [nn.SparseGlobalMaxPool(), nn.SparseGlobalAvgPool(), nn.SparseGlobalSumPool()]

    def forward(self, feats, coords):
        x = nn.SymbolicSparseTensor.of(feats, coords, 3)
        y = x + self.body(x)
        return (y.feats, self.out(y), nn.ToDense((9, 9, 9), False)(y), *(pool(y) for pool in self.pools))


@functools.cache
def contained() -> Compiled:
    inputs = {"feats": spec.Tensor(["n", 4], "float32"), "coords": spec.Tensor(["n", 4], "int32")}
    return Compiled(Contained(), inputs, lift_params=True)


@pytest.mark.parametrize("rows", (0, 1, 50))
def test_containers(rows):
    rng = np.random.default_rng(rows)
    coords, x = voxels(rng, rows, 3), rng.standard_normal((rows, 4)).astype("float32")
    p = contained().parameters
    assert list(p) == ["body.0.weight", "body.0.bias", "body.then.1.weight", "body.then.1.bias"]
    y, first, last, *pooled = contained().run(x, coords)
    h = 2 * conv(x, p["body.0.weight"], naive_table(coords, coords, SUBM), p["body.0.bias"])
    expected = x + np.maximum(h, 0) @ p["body.then.1.weight"].T.astype("float64") + p["body.then.1.bias"]
    assert_close(y, expected, 440, dtype="float32")
    grid = np.zeros((3, 9, 9, 9, 4), "float32")
    grid[tuple(coords.T)] = y
    np.testing.assert_array_equal(last, grid)
    np.testing.assert_array_equal(first, grid.transpose(0, 4, 1, 2, 3))
    for got, mode in zip(pooled, ("max", "mean", "sum"), strict=True):
        assert_close(got, segment_pool.naive(y, coords[:, 0], 3, pool.Reduction(mode)), max(rows, 1), dtype="float32")


class Levels(nn.Module):
    """Two nested levels, subdivision, norms and attention, with a symbolic number of batch elements."""

    def __init__(self):
        self.linear = nn.Linear(6, 16)
        self.down = nn.Downsample(2, "mean", count_bias=1)
        self.further = nn.Downsample((1, 2, 3), "max")
        self.up = nn.Upsample()
        self.subdivide = nn.Subdivide((2, 1, 2))
        self.batch = nn.BatchPool("sum")
        self.modulated = nn.LayerNorm(16, eps=1e-5)
        self.group = nn.GroupNorm(4, 16)
        self.rms = nn.MultiHeadRMSNorm(8, 2)
        self.self_attn = nn.SelfAttention(16, 2, qk_rms_norm=True)
        self.cross_attn = nn.CrossAttention(16, 6, 4)
        self.silu = nn.Activation("silu")

    def forward(self, feats, coords, scale, shift, context, context_offsets):
        batch = scale.shape[0]
        x = self.linear(nn.SymbolicSparseTensor.of(feats, coords, batch), activation="gelu_tanh")
        down = self.down(x)
        further = self.further(down)
        back = self.up(self.up(further))
        children = self.subdivide(further)
        modulated = self.modulated(x, scale, shift, activation="silu")
        group = self.group(x, activation="relu")
        gated = nn.modulated_add(x, modulated, scale)
        joined = nn.concat([gated, group])
        attended = self.self_attn(x, residual=gated)
        crossed = self.cross_attn(x, self.cross_attn.context(context), context_offsets)
        return (
            *(x.feats, down.coords, down.feats, further.coords, further.feats, back.feats),
            *(children.coords, children.feats, self.batch(x), modulated.feats, group.feats, gated.feats),
            *(joined.feats, attended.feats, crossed.feats, self.silu(x).feats),
        )


@functools.cache
def levels() -> Compiled:
    inputs = {
        "feats": spec.Tensor(["n", 6], "float32"),
        "coords": spec.Tensor(["n", 4], "int32"),
        "scale": spec.Tensor(["batch", 16], "float32"),
        "shift": spec.Tensor(["batch", 16], "float32"),
        "context": spec.Tensor(["tokens", 6], "float32"),
        "context_offsets": spec.Tensor(["offsets"], "int32"),
    }
    return Compiled(Levels(), inputs, lift_params=False)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rows", ROWS)
def test_levels_norms_and_attention(rows, batch):
    rng = np.random.default_rng(rows)
    coords, feats = voxels(rng, rows, batch), rng.standard_normal((rows, 6)).astype("float32")
    scale, shift = rng.standard_normal((2, batch, 16)).astype("float32")
    context_offsets = np.array([0, 5, 5, 9] if batch == 3 else [0, 9], "int32")
    context = rng.standard_normal((9, 6)).astype("float32")
    p = levels().parameters
    x, down_coords, down, low_coords, low, back, child_coords, children, *rest = levels().run(
        feats, coords, scale, shift, context, context_offsets
    )
    pooled, modulated, group, gated, joined, attended, crossed, silu = rest
    close = functools.partial(assert_close, dtype="float32")
    close(x, linear.naive(feats, p["linear.weight"], p["linear.bias"], activation="gelu_tanh"), 7)

    expected, inverse = unique.naive(coords, (2, 2, 2))
    np.testing.assert_array_equal(down_coords, expected)
    close(down, segment_pool.naive(x, inverse, len(expected), pool.Reduction("mean", 1)), 9)
    expected, further = unique.naive(down_coords, (1, 2, 3))
    np.testing.assert_array_equal(low_coords, expected)
    np.testing.assert_array_equal(low, segment_pool.naive(down, further, len(expected), pool.Reduction("max")))
    np.testing.assert_array_equal(back, low[further][inverse])
    np.testing.assert_array_equal(child_coords, subdivide.naive(low_coords, (2, 1, 2)))
    np.testing.assert_array_equal(children, gather_rows.naive(low, np.repeat(np.arange(len(low)), 4)))
    index = coords[:, 0]
    close(pooled, segment_pool.naive(x, index, batch, pool.Reduction("sum")), max(rows, 1))

    norm = layer_norm.naive(x, p["modulated.weight"], p["modulated.bias"], scale, shift, index, eps=1e-5, activation="silu")
    close(modulated, norm, 16)
    offsets = np.searchsorted(index, np.arange(batch + 1))
    close(group, group_norm.naive(x, offsets, p["group.weight"], p["group.bias"], 4, activation="relu"), max(4 * rows, 1))
    close(gated, modulated_add.naive(x, modulated, scale, index), 2)
    np.testing.assert_array_equal(joined, np.concatenate([gated, group], 1))
    np.testing.assert_array_equal(silu.shape, x.shape)
    close(silu, linear.ACTIVATIONS["silu"](x.astype("f8")), 4)

    q, k, v = linear.naive(x, p["self_attn.to_qkv.weight"], p["self_attn.to_qkv.bias"]).reshape(rows, 3, 2, 8).swapaxes(0, 1)
    q, k = (rms_norm_heads.naive(a, p[f"self_attn.{n}_rms_norm.gamma"]) for a, n in ((q, "q"), (k, "k")))
    h = attention.naive(q, k, v, offsets, offsets).reshape(rows, 16)
    h = linear.naive(h, p["self_attn.to_out.weight"], p["self_attn.to_out.bias"], gated)
    # Logits are sums of 8 products of values near 3, so their errors enlarge every weight: counted as 8 * 3^2.
    close(attended, h, 16 + 72 + rows + 16)
    q = linear.naive(x, p["cross_attn.to_q.weight"], p["cross_attn.to_q.bias"]).reshape(rows, 4, 4)
    kv = linear.naive(context, p["cross_attn.to_kv.weight"], p["cross_attn.to_kv.bias"]).reshape(9, 2, 4, 4)
    h = attention.naive(q, kv[:, 0], kv[:, 1], offsets, context_offsets).reshape(rows, 16)
    h = linear.naive(h, p["cross_attn.to_out.weight"], p["cross_attn.to_out.bias"])
    logit = np.abs(q).max(initial=0) * np.abs(kv).max() * 4
    close(crossed, h, 16 + logit**2 + 9 + 16)


class Small(nn.Module):
    """A weight that is cut before it is packed, one that is packed as it is, one that is transposed first."""

    def __init__(self):
        self.linear = nn.Linear(5, 6)
        self.conv = nn.SubMConv3d(3, 3, 3)
        self.point = nn.SubMConv3d(3, 2, 1)

    def forward(self, feats, coords):
        first, second = self.linear.parts(nn.SymbolicSparseTensor.of(feats, coords), 2)
        return self.point(self.conv(first, second.feats)).feats, second.feats


def test_parameters_packed_once_give_the_same_bits():
    rng = np.random.default_rng(3)
    inputs = {"feats": spec.Tensor(["n", 5], "float32"), "coords": spec.Tensor(["n", 4], "int32")}
    once, always = (Compiled(Small(), dict(inputs), lift_params) for lift_params in (True, False))
    assert [array.shape for array in once.trailing] != [array.shape for array in always.trailing]
    for rows in ROWS:
        arrays = rng.standard_normal((rows, 5)).astype("float32"), voxels(rng, rows, 1)
        for a, b in zip(once.run(*arrays), always.run(*arrays), strict=True):
            np.testing.assert_array_equal(a, b)


def test_layers_on_the_same_sites_share_a_map():
    text = convolutions().mod.script()
    assert text.count("sparse_ops.submanifold_map(") == 1  # two layers
    assert text.count("sparse_ops.strided_map(") == 3  # convolution, transposed convolution, one window for three pools
    assert text.count("sparse_ops.inverse_map(") == 2


def test_bad_data_is_found_by_the_running_module():
    coords, x = voxels(np.random.default_rng(0), 7, 1), np.zeros((7, 5), "float32")
    coords[5] = coords[2]
    with pytest.raises(ValueError, match="row 5 repeats the coordinates of row 2"):
        convolutions().run(x, coords)
    with pytest.raises(Exception, match=r"7|6"):  # the virtual machine's own check of shapes
        convolutions().run(x[:6], coords)
    coords = np.array([[1, 0, 0, 0], [0, 0, 0, 0]], "int32")
    scale = np.zeros((2, 16), "float32")
    with pytest.raises(ValueError, match="batch index 0 after 1"):
        levels().run(x[:2, :1].repeat(6, 1), coords, scale, scale, np.zeros((1, 6), "float32"), np.array([0, 1, 1], "int32"))


class Narrow(nn.Module):
    """Features and weights of a narrow type; biases stay float32."""

    def __init__(self, dtype):
        self.linear = nn.Linear(5, 8, dtype=dtype)
        self.conv = nn.SubMConv3d(8, 9, 3, dtype=dtype)
        self.norm = nn.LayerNorm(9)

    def forward(self, feats, coords):
        x = self.linear(nn.SymbolicSparseTensor.of(feats, coords))
        h = self.conv(x)
        return x.feats, h.feats, self.norm(h).feats


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types(dtype):
    inputs = {"feats": spec.Tensor(["n", 5], dtype), "coords": spec.Tensor(["n", 4], "int32")}
    network = Compiled(Narrow(dtype), inputs, lift_params=True)
    p, rng = network.parameters, np.random.default_rng(0)
    coords, x = voxels(rng, 100, 1), rng.standard_normal((100, 5)).astype(_numpy(dtype))
    y, h, z = network.run(x, coords)
    assert_close(y, linear.naive(x, p["linear.weight"], p["linear.bias"]), dtype=_numpy(dtype))
    table = naive_table(coords, coords, SUBM)
    assert_close(h, conv(y, p["conv.weight"], table, p["conv.bias"]), dtype=_numpy(dtype))
    assert_close(z, layer_norm.naive(h, p["norm.weight"], p["norm.bias"]), dtype=_numpy(dtype))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nn.Linear(0, 3), "in_features: expected an int of at least 1, given 0"),
        (lambda: nn.SubMConv3d(3, 4, 2), r"kernel_size: expected odd sizes, given 2"),
        (lambda: nn.SparseConv3d(3, 4, (3, 3)), r"kernel_size: expected an int or three of at least 1, given \(3, 3\)"),
        (lambda: nn.SparseConv3d(3, 4, 1, padding=1), "padding: expected 0 with kernel and stride 1, given 1"),
        (lambda: nn.SparseConv3d(3, 4, 3, stride=0), "stride: expected an int or three of at least 1, given 0"),
        (lambda: nn.GroupNorm(4, 6), "num_groups: expected a divisor of 6 channels, given 4"),
        (lambda: nn.SelfAttention(16, 3), "num_heads: expected a divisor of 16 channels, given 3"),
        (lambda: nn.Downsample(2, "median"), "mode: expected one of .*, given 'median'"),
        (lambda: nn.Activation("tanh"), "name: expected one of .*, given 'tanh'"),
    ],
)
def test_bad_options(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def _forward(f):
    """Export a function of `feats` [n, 5] and `coords` as a module."""

    class Network(nn.Module):
        def forward(self, feats, coords):
            return f(feats, coords).feats

    inputs = {"feats": spec.Tensor(["n", 5], "float32"), "coords": spec.Tensor(["n", 4], "int32")}
    return Network().export_tvm({"forward": inputs})


def _inverse_elsewhere(feats, coords):
    x = nn.SparseConv3d(5, 5, 2, 2, indice_key="a")(nn.SymbolicSparseTensor.of(feats, coords))
    return nn.SparseInverseConv3d(5, 5, 2, "a")(nn.SparseConv3d(5, 5, 3)(x))


def _key_twice(feats, coords):
    x = nn.SparseConv3d(5, 5, 2, 2, indice_key="a")(nn.SymbolicSparseTensor.of(feats, coords))
    return nn.SparseConv3d(5, 5, 3, indice_key="a")(x)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (lambda x, c: nn.SubMConv3d(6, 4)(nn.SymbolicSparseTensor.of(x, c)), "SubMConv3d: x: expected 6 channels, given 5"),
        (lambda x, c: nn.SubMConv3d(5, 4)(x), "SubMConv3d: x: expected a SymbolicSparseTensor, given Tensor"),
        (lambda x, c: nn.Downsample()(x), "Downsample: x: expected a SymbolicSparseTensor, given Tensor"),
        (lambda x, c: nn.GroupNorm(1, 5)(x), "GroupNorm: x: expected a SymbolicSparseTensor, given Tensor"),
        (lambda x, c: nn.SymbolicSparseTensor.of(x, x), r"coords: expected an int32 tensor \[N, 4\], given Tensor"),
        (lambda x, c: nn.SymbolicSparseTensor.of(c.shape, c), r"feats: expected a tensor \[N, C\], given"),
        (
            lambda x, c: nn.Upsample()(nn.SymbolicSparseTensor.of(x, c)),
            "Upsample: x: expected features on sites that downsampling",
        ),
        (lambda x, c: nn.Linear(6, 4)(nn.SymbolicSparseTensor.of(x, c)), "Linear: x: expected 6 channels, given 5"),
        (lambda x, c: nn.SymbolicSparseTensor.of(x, c) + x, r"\+: x: expected a SymbolicSparseTensor, given"),
        (
            lambda x, c: nn.SymbolicSparseTensor.of(x, c) + nn.SymbolicSparseTensor.of(x, c),
            r"\+: expected features on the same sites",
        ),
        (
            lambda x, c: (y := nn.SymbolicSparseTensor.of(x, c)) + nn.SubMConv3d(5, 4)(y),
            r"\+: expected 5 channels of float32, given 4 of float32",
        ),
        (lambda x, c: nn.SparseSequential(3), "module: expected a module or a function of features, given 3"),
        (lambda x, c: nn.SparseSequential(forward=nn.Activation("relu")), "name: expected one .* not taken, given 'forward'"),
        (lambda x, c: nn.SymbolicSparseTensor.of(x, c, 2.0), "batch: expected an int of at least 1, given 2.0"),
        (lambda x, c: nn.ToDense(4)(x), "ToDense: x: expected a SymbolicSparseTensor"),
        (
            lambda x, c: nn.SparseInverseConv3d(5, 4, 3, "a")(nn.SymbolicSparseTensor.of(x, c)),
            r"indice_key: expected that of an earlier layer \(none\), given 'a'",
        ),
        (_inverse_elsewhere, "expected features on the sites that layer 'a' led to"),
        (_key_twice, "indice_key: expected a key of its own for every map, given 'a' again"),
        (
            lambda x, c: nn.concat([nn.SymbolicSparseTensor.of(x, c), nn.SymbolicSparseTensor.of(x, c)]),
            r"tensors\[1\]: expected features on the sites of tensors\[0\]",
        ),
    ],
)
def test_networks_that_do_not_fit(network, says):
    with pytest.raises(ValueError, match=says):
        _forward(network)
