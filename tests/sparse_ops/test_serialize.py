"""Space-filling curves and windows along them: codes against oracle and definition, overlapping windows, wrong input."""

import itertools

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax
from tvm.relax.frontend.nn import spec

from sparse_ops import nn, op
from sparse_ops.build import build
from sparse_ops.eager import functional as F
from sparse_ops.testing.examples import features
from tests.sparse_ops.strategies import coordinates
from tests.sparse_ops.test_windows import masked_attention
from tests.tolerance import assert_close
from tir_kernels.spec.serialize import MODES, naive, naive_partition


def cube(side: int, first=(0, 0, 0)) -> np.ndarray:
    """int32 [side^3, 4]: every voxel of a cube, in no particular order."""
    cells = np.random.default_rng(0).permutation(side**3)
    return np.stack([cells % 2, *(cells // side**a % side + first[a] for a in range(3))], 1).astype("int32")


def spread(coords: np.ndarray, far: bool) -> np.ndarray:
    """Coordinates of the strategy, or the same over most of the range of codes."""
    return coords * np.array([1, 80, 80, 80], "int32") + np.array([0, 500, 500, 500], "int32") if far else coords


@pytest.mark.parametrize("mode", MODES)
@given(coords=coordinates(), far=st.booleans())
def test_codes(mode, coords, far):
    coords = spread(coords, far)
    code = F.serialize(coords, mode, (5, 6, 7))
    assert code.dtype == "int32"
    np.testing.assert_array_equal(code, naive(coords, mode, (5, 6, 7)))


def test_z_order_interleaves_bits():
    coords = cube(8)
    text = [[f"{value:010b}" for value in row] for row in coords[:, 1:]]
    code = [int("".join(a + b + c for a, b, c in zip(x, y, z, strict=True)), 2) for x, y, z in text]
    assert F.serialize(coords).tolist() == code
    exchanged = np.ascontiguousarray(coords[:, [0, 2, 1, 3]])
    for mode in ("z_order", "hilbert"):
        np.testing.assert_array_equal(F.serialize(coords, f"{mode}_transposed"), F.serialize(exchanged, mode))


@pytest.mark.parametrize("first", [(0, 0, 0), (16, 32, 0), (1008, 512, 1008)])
def test_hilbert_walks_from_face_to_face(first):
    """An aligned cube is one piece of the curve, whose voxels follow each other across faces."""
    coords = cube(16, first)
    code = F.serialize(coords, "hilbert")
    order = np.argsort(code)
    assert (np.diff(code[order]) == 1).all()
    assert (np.abs(np.diff(coords[order, 1:], axis=0)).sum(1) == 1).all()
    if first == (0, 0, 0):
        assert code.min() == 0 and (coords[order[0], 1:] == 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [1, 5, 9, 11, 13, 16])
@given(data=st.data())
def test_codes_of_other_widths(mode, bits, data):
    side = 1 << bits
    place = st.tuples(st.integers(0, 3), *[st.sampled_from([0, 1, side // 2, side - 1]) | st.integers(0, side - 1)] * 3)
    coords = np.array(data.draw(st.lists(place, max_size=40)), "int32").reshape(-1, 4)
    coords[:, 1:] -= side // 2
    code = F.serialize(coords, mode, side // 2, bits)
    assert code.dtype == ("int32" if bits <= 10 else "int64")
    np.testing.assert_array_equal(code, naive(coords, mode, (side // 2,) * 3, bits))
    z, y, x = (sum((code.astype("int64") >> 3 * bit + axis & 1) << bit for bit in range(bits)) for axis in range(3))
    if mode == "z_order":  # the bits of a code are those of the coordinates
        np.testing.assert_array_equal(np.stack([x, y, z], 1) - side // 2, coords[:, 1:])
    assert len(np.unique(code)) == len(np.unique(coords[:, 1:], axis=0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_codes_of_a_whole_cube_are_a_permutation(mode, bits):
    """And neighbours along the Hilbert curve are neighbours in space."""
    coords = cube(1 << bits)
    code = F.serialize(coords, mode, 0, bits)
    order = np.argsort(code)
    np.testing.assert_array_equal(code[order], np.arange(len(coords)))
    if mode.startswith("hilbert"):
        assert (np.abs(np.diff(coords[order, 1:], axis=0)).sum(1) == 1).all()


@pytest.mark.parametrize("corner", [-32768, -16, 32767 - 15])
def test_hilbert_over_the_full_range(corner):
    """Cubes at both ends and in the middle of the range, whose pieces of the curve go from face to face."""
    coords = cube(16, (corner, -corner - 16, corner))
    code = F.serialize(coords, "hilbert", 32768, 16)
    order = np.argsort(code)
    steps = np.abs(np.diff(coords[order, 1:].astype("int64"), axis=0)).sum(1)
    assert (steps[np.diff(code[order]) == 1] == 1).all() and (np.diff(code[order]) == 1).mean() > 0.99


def test_the_default_is_ten_bits():
    coords = cube(16)
    for mode in MODES:
        code = F.serialize(coords, mode, 100)
        assert code.dtype == "int32"
        np.testing.assert_array_equal(code, naive(coords, mode, (100,) * 3, 10))
    assert (F.serialize(coords, "hilbert", 0, 11) != F.serialize(coords, "hilbert")).any()
    np.testing.assert_array_equal(F.serialize(coords, "z_order", 0, 16), F.serialize(coords))


@pytest.mark.parametrize("mode", ["z_order", "hilbert"])
def test_partition_over_the_full_range(mode):
    rng = np.random.default_rng(1)
    coords = rng.integers([0, -32768, -32768, -32768], [2, 32768, 32768, 32768], (500, 4)).astype("int32")
    coords[:8, 1:] = np.array(list(itertools.product([-32768, 32767], repeat=3)))
    code = naive(coords, mode, (32768,) * 3, 16)
    assert (code >> 32).any() and (code >> 16 & 0xFFFF).any()
    expected = naive_partition(coords, code, 20, 3)
    for part, one in zip(F.serialized_partition(coords, 20, 3, 32768, mode, 16), expected, strict=True):
        np.testing.assert_array_equal(part, one)


def test_modules_take_wide_codes():
    layer = nn.SerializedSelfAttention(8, 2, 20, shift=32768, mode="hilbert", bits=16)
    inputs = {"feats": spec.Tensor(["n", 8], "float32"), "coords": spec.Tensor(["n", 4], "int32")}

    class Wide(nn.Module):
        def __init__(self):
            self.layer = layer

        def forward(self, feats: nn.Tensor, coords: nn.Tensor):
            x = nn.SymbolicSparseTensor.of(feats, coords)
            self.layer(x)
            return x.sites.serialized(20, 0, 32768, "hilbert", 16).fields

    mod, parameters = Wide().export_tvm({"forward": inputs})
    machine = relax.VirtualMachine(build(mod), tvm.cpu())
    rng = np.random.default_rng(2)
    coords = rng.integers([0, -32768, -32768, -32768], [2, 32768, 32768, 32768], (90, 4)).astype("int32")
    given = [tvm.runtime.tensor(np.zeros([int(n) for n in p.shape], "float32")) for _, p in parameters]
    out = machine["forward"](tvm.runtime.tensor(features(rng, 90, 8)), tvm.runtime.tensor(coords), *given)
    expected = naive_partition(coords, naive(coords, "hilbert", (32768,) * 3, 16), 20)
    for part, one in zip(out, expected, strict=True):
        np.testing.assert_array_equal(part.numpy(), one)


@pytest.mark.parametrize(("window", "shift_sequence", "mode"), [(1, 0, "z_order"), (7, 3, "hilbert"), (20, 1000, "z_order")])
@given(coords=coordinates(max_rows=100), repeats=st.integers(1, 2), far=st.booleans())
def test_partition(window, shift_sequence, mode, coords, repeats, far):
    coords = np.repeat(spread(coords, far), repeats, axis=0)
    parts = F.serialized_partition(coords, window, shift_sequence, 5, mode)
    code = naive(coords, mode, (5, 5, 5))
    for part, expected in zip(parts, naive_partition(coords, code, window, shift_sequence), strict=True):
        assert part.dtype == "int32"
        np.testing.assert_array_equal(part, expected)

    q_order, q_offsets, k_order, k_offsets = parts
    assert sorted(q_order) == list(range(len(coords)))
    assert q_offsets[0] == k_offsets[0] == 0 and q_offsets[-1] == len(q_order) and k_offsets[-1] == len(k_order)
    for i in range(len(q_offsets) - 1):
        queries, keys = q_order[q_offsets[i] : q_offsets[i + 1]], k_order[k_offsets[i] : k_offsets[i + 1]]
        (batch,) = set(coords[keys, 0])
        assert len(queries) and set(queries) <= set(keys)
        assert len(set(keys)) == len(keys) == min(window, (coords[:, 0] == batch).sum())


def test_all_bits_of_a_code_count():
    coords = cube(16) * np.array([1, 20, 20, 20], "int32")
    q_order, *_ = F.serialized_partition(coords, 1, 0, 5, "z_order")
    np.testing.assert_array_equal(q_order, np.lexsort((naive(coords, "z_order", (5, 5, 5)), coords[:, 0])))


def test_attention_along_a_curve_is_masked_attention():
    rng = np.random.default_rng(0)
    coords = rng.integers(0, [2, 9, 9, 9], (300, 4)).astype("int32")
    q, k, v = (features(rng, 300, 2, 20) for _ in range(3))
    q_order, q_offsets, k_order, k_offsets = F.serialized_partition(coords, 64, 10)
    assert len(k_order) > 300  # windows overlap
    seen = np.zeros((300, 300), bool)
    for i in range(len(q_offsets) - 1):
        seen[np.ix_(q_order[q_offsets[i] : q_offsets[i + 1]], k_order[k_offsets[i] : k_offsets[i + 1]])] = True
    out = F.attention(q, k, v, q_offsets, k_offsets, q_order=q_order, k_order=k_order)
    assert_close(out, masked_attention(q, k, v, seen), 64, dtype="float32")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 0, 1023, 0], "coords: row 1 has y 1023, expected -1 to 1022"),
        ([0, -4, 0, 0], "coords: row 1 has x -4, expected -3 to 1020"),
        ([4096, 0, 0, 0], "coords: row 1 has batch index 4096, expected 0 to 4095"),
        ([0, 0, 0, 2000000000], "coords: row 1 has z 2000000000, expected 0 to 1023"),
    ],
)
def test_rows_out_of_range_are_named(row, message):
    coords = np.array([[0, 0, 0, 0], row, row], "int32")
    for call in (lambda: F.serialize(coords, shift=(3, 1, 0)), lambda: F.serialized_partition(coords, 8, 0, (3, 1, 0))):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window: expected an int of at least 1, given 0"),
        ({"window": 8, "shift_sequence": -1}, "shift_sequence: expected an int of at least 0, given -1"),
        ({"window": 8, "shift": (1, 2)}, r"shift: expected an int or three of at least -32768, given \(1, 2\)"),
        ({"window": 8, "bits": 17}, "bits: expected 1 to 16, given 17"),
        ({"window": 8, "bits": 0}, "bits: expected an int of at least 1, given 0"),
        ({"window": 8, "mode": "morton"}, "mode: expected one of 'z_order', .*, given 'morton'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=rf"sparse_ops\.serialized_partition: {message}"):
        op.serialized_partition(relax.Var("coords", relax.TensorType([2, 4], "int32")), **options)
    with pytest.raises(ValueError, match=rf"nn\.SerializedSelfAttention: {message}"):
        nn.SerializedSelfAttention(8, 2, **options)
