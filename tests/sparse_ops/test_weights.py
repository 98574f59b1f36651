"""Weights of other libraries, by an independent statement of each one's law: a loop over its taps, as its documents tell it."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import sparse_ops
from sparse_ops import SparseTensor
from sparse_ops.weights import LAYOUTS, from_layout, to_layout
from tests.tolerance import assert_close

torch = pytest.importorskip("torch")

CIN, COUT = 3, 5
CLOUD = np.argwhere(np.random.default_rng(0).random((2, 6, 5, 4)) < 0.4).astype("int32", order="C")


def features(channels: int = CIN) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((len(CLOUD), channels)).astype("float32")


def numbered_taps(layout: str, kernel) -> list[tuple[int, ...]]:
    """The place of every tap along x, y, z, in the order in which the library numbers them."""
    x, y, z = (range(k) for k in kernel)
    x_fastest = [(i, j, k) for k in z for j in y for i in x]
    x_slowest = [(i, j, k) for i in x for j in y for k in z]
    if layout.startswith("minkowski") or (layout == "torchsparse" and np.prod(kernel) % 2 == 1):
        return x_fastest
    return x_slowest


def matrix(layout: str, weight, kernel, tap: int) -> np.ndarray:
    """[Cin, Cout] that the library multiplies rows by at a tap, from its stored weight."""
    place = numbered_taps(layout, kernel)[tap]
    if layout in ("minkowski", "torchsparse"):
        return weight[tap] if weight.ndim == 3 else weight
    if layout == "minkowski_channelwise":
        return np.diag(weight[tap])
    if layout == "spconv1":
        return weight[place]
    if layout == "torch":
        return weight[(..., *place)].T
    if layout == "spconv2" and np.prod(kernel) == 1:
        return weight.reshape(weight.shape[-1], weight.shape[0])
    return weight[:, place[0], place[1], place[2], :].T


def stored_shape(layout: str, kernel) -> tuple[int, ...]:
    taps = int(np.prod(kernel))
    return {
        "spconv2": (COUT, *kernel, CIN),
        "spconv1": (*kernel, CIN, COUT),
        "minkowski": (taps, CIN, COUT),
        "minkowski_channelwise": (taps, CIN),
        "torchsparse": (taps, CIN, COUT),
        "flexgemm": (COUT, *kernel, CIN),
        "torch": (COUT, CIN, *kernel),
    }[layout]


def stored(layout: str, kernel, dtype="float32") -> np.ndarray:
    return np.random.default_rng(2).standard_normal(stored_shape(layout, kernel)).astype(dtype)


def convolved(layout: str, weight, kernel, lowest) -> np.ndarray:
    """[N, Cout] in float64: over the taps, whose offsets begin at `lowest`, the row that is there times the tap's matrix."""
    x = features().astype("float64")
    rows = {tuple(voxel): row for row, voxel in enumerate(CLOUD.tolist())}
    out = np.zeros((len(CLOUD), matrix(layout, weight, kernel, 0).shape[1]))
    for tap, place in enumerate(numbered_taps(layout, kernel)):
        for row, (batch, *site) in enumerate(CLOUD.tolist()):
            source = rows.get((batch, *(s + p + low for s, p, low in zip(site, place, lowest, strict=True))))
            if source is not None:
                out[row] += x[source] @ matrix(layout, weight.astype("float64"), kernel, tap)
    return out


def test_a_layer_of_groups_and_kernel_1():
    """Only without groups is the memory of such a layer a matrix."""
    weight = np.random.default_rng(4).standard_normal((6, 2, 1, 1, 1)).astype("float32")
    layer = sparse_ops.SubMConv3d(4, 6, 1, groups=2, bias=False)
    layer.weight = from_layout(weight, "torch", 1, groups=2)
    x = features(4)
    parts = [x[:, 2 * g : 2 * g + 2].astype("float64") @ weight[3 * g : 3 * g + 3, :, 0, 0, 0].T for g in range(2)]
    assert_close(layer(SparseTensor(x, CLOUD)).feats, np.concatenate(parts, 1), 2, dtype="float32")
    np.testing.assert_array_equal(to_layout(layer.weight, "torch", groups=2), weight)


def test_a_channelwise_layer():
    weight = stored("minkowski_channelwise", (3, 3, 3))
    layer = sparse_ops.SubMConv3d(CIN, CIN, 3, groups=CIN, bias=False)
    layer.weight = from_layout(weight, "minkowski_channelwise", 3, groups=CIN)
    expected = convolved("minkowski_channelwise", weight, (3, 3, 3), (-1, -1, -1))
    assert_close(layer(SparseTensor(features(), CLOUD)).feats, expected, 27, dtype="float32")


GROUPED = {"minkowski_channelwise"}  # one group a channel, which the comparison spreads into a full weight


def full(layout: str, weight: np.ndarray) -> np.ndarray:
    """[Cout, *kernel, Cin] of a weight of groups."""
    if layout not in GROUPED:
        return weight
    return np.stack([weight[..., 0] * (np.arange(CIN) == i)[:, None, None, None] for i in range(CIN)], -1).astype("float32")


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 5), (1, 1, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_submanifold_layer_computes_what_the_library_does(layout, kernel):
    weight = stored(layout, kernel)
    ours = full(layout, from_layout(weight, layout, kernel))
    layer = sparse_ops.SubMConv3d(CIN, len(ours), kernel, bias=False)
    layer.weight = np.ascontiguousarray(ours)
    out = layer(SparseTensor(features(), CLOUD)).feats
    assert_close(out, convolved(layout, weight, kernel, [-(k // 2) for k in kernel]), np.prod(kernel) * CIN, dtype="float32")


@pytest.mark.parametrize("kernel", [(2, 2, 2), (2, 3, 2), (4, 1, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_taps_of_even_kernels(layout, kernel):
    """A strided layer without padding at stride 1, whose taps begin at the voxel itself, at the voxels of the cloud."""
    weight = stored(layout, kernel)
    layer = sparse_ops.SparseConv3d(CIN, len(full(layout, from_layout(weight, layout, kernel))), kernel, bias=False)
    layer.weight = np.ascontiguousarray(full(layout, from_layout(weight, layout, kernel)))
    out = layer(SparseTensor(features(), CLOUD))
    rows = {tuple(voxel): row for row, voxel in enumerate(out.coords.tolist())}
    expected = convolved(layout, weight, kernel, [0, 0, 0])
    found = [(rows[tuple(voxel)], row) for row, voxel in enumerate(CLOUD.tolist()) if tuple(voxel) in rows]
    assert len(found) > len(CLOUD) // 4
    ours, theirs = np.array(found).T
    assert_close(out.feats[ours], expected[theirs], np.prod(kernel) * CIN, dtype="float32")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_strided_layer_of_kernel_1_is_not_pointwise(layout):
    """Its weight is read as any other, so only its memory differs from that of a pointwise layer."""
    weight = stored(layout, (1, 1, 1))
    strided, pointwise = (from_layout(weight, layout, 1, stride=stride) for stride in (2, 1))
    if layout == "spconv2":
        np.testing.assert_array_equal(strided, pointwise)
        return
    out, channels = strided.shape[0], strided.shape[-1]
    expected = matrix(layout, weight, (1, 1, 1), 0)
    if layout not in GROUPED:
        np.testing.assert_array_equal(strided.reshape(out, channels), expected.T)
    np.testing.assert_array_equal(pointwise.reshape(channels, out), strided.reshape(out, channels).T)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (2, 3, 4), (1, 1, 1), (3, 2), (1,), (5,)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back(layout, kernel, stride):
    for dtype in ("float32", "float16", ml_dtypes.bfloat16):
        weight = stored(layout, kernel, dtype)
        ours = from_layout(weight, layout, kernel, stride=stride, ndim=len(kernel))
        assert ours.dtype == weight.dtype and ours.flags.c_contiguous and not np.shares_memory(ours, weight)
        assert ours.shape[1:-1] == kernel
        np.testing.assert_array_equal(to_layout(ours, layout, stride=stride), weight)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_tensors_stay_what_they_are(layout):
    weight = stored(layout, (3, 1, 2))
    ours = from_layout(torch.from_numpy(weight), layout, (3, 1, 2))
    assert isinstance(ours, torch.Tensor) and ours.is_contiguous()
    np.testing.assert_array_equal(ours.numpy(), from_layout(weight, layout, (3, 1, 2)))
    np.testing.assert_array_equal(to_layout(ours, layout).numpy(), weight)


@pytest.mark.parametrize("layout", ["minkowski", "torchsparse"])
def test_a_matrix_for_kernel_1(layout):
    weight = stored(layout, (1, 1, 1))
    np.testing.assert_array_equal(from_layout(weight[0], layout, 1), from_layout(weight, layout, 1))


def test_groups():
    """A group's input channels are all that a weight holds of them."""
    weight = np.random.default_rng(3).standard_normal((6, 2, 3, 3, 3)).astype("float32")
    ours = from_layout(weight, "torch")
    assert ours.shape == (6, 3, 3, 3, 2)
    for tap in itertools.product(range(3), repeat=3):
        np.testing.assert_array_equal(ours[(slice(None), *tap)], weight[(slice(None), slice(None), *tap)])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: from_layout(np.zeros((27, 3, 5)), "spconv3"), "layout: expected one of 'spconv2', 'spconv1'"),
        (lambda: from_layout(np.zeros((27, 3, 5)), 3), "layout: expected one of"),
        (lambda: from_layout(np.zeros((27, 3, 5)), "minkowski"), "kernel_size: expected that of the layer"),
        (lambda: from_layout(np.zeros((8, 3, 5)), "minkowski", 3), r"weight: expected 27 taps .* given float64 \[8, 3, 5\]"),
        (lambda: from_layout(np.zeros((3, 5)), "torchsparse", 3), r"weight: expected .* given float64 \[3, 5\]"),
        (lambda: from_layout(np.zeros((3, 3, 3, 3, 5)), "minkowski", 3), r"weight: expected \[taps, Cin, Cout\]"),
        (lambda: from_layout(np.zeros((3, 5)), "spconv1"), r"weight: expected \[kx, ky, kz, Cin, Cout\] of spconv 1.x, given"),
        (lambda: from_layout(np.zeros((3, 3, 3, 3, 4, 5)), "spconv1"), "weight: expected"),
        (lambda: from_layout(np.zeros((5, 3, 3, 3, 4)), "spconv2", (3, 3, 1)), r"weight: expected a kernel of \[3, 3, 1\]"),
        (lambda: from_layout([[1.0]], "torch"), "weight: expected a numpy array or a torch tensor, given list"),
        (lambda: from_layout(np.zeros((27, 3, 5)), "minkowski", (3, 3)), "kernel_size: expected"),
        (lambda: from_layout(np.zeros((27, 3, 5)), "minkowski", 0), "kernel_size: expected"),
        (lambda: to_layout(np.zeros((5, 3)), "minkowski"), r"weight: expected \[Cout, \*kernel, Cin\]"),
        (lambda: to_layout(np.zeros((5, 3, 3, 3, 2)), "minkowski_channelwise"), "weight: expected one input channel a group"),
    ],
)
def test_what_does_not_fit(call, words):
    with pytest.raises(ValueError, match=words):
        call()
