"""Voxels in order: masks, children, windows and space-filling curves on the emulated device, and what they refuse."""

import re

import numpy as np
import pytest

from tests.cuda_emulator import same_bits
from tests.tir_kernels.cuda.on_device import run
from tir_kernels.cuda.scan import TILE
from tir_kernels.spec import flatnonzero, serialize, subdivide, windows
from tir_kernels.spec.coordinate_index import BATCH_LIMIT
from tir_kernels.spec.flatnonzero import CHUNK, CountNonzero, FillNonzero
from tir_kernels.spec.serialize import MODES, CountCuts, CutSequence, Serialize, SerialKeys, code_dtype
from tir_kernels.spec.subdivide import Subdivide
from tir_kernels.spec.windows import GroupRows, WindowCoords


def coordinates(rows: int, seed: int = 0, low: int = 0, high: int = 1024, batches=(0,)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coords = rng.integers(low, high, (rows, 4), "int32")
    coords[:, 0] = rng.choice(batches, rows)
    return coords


@pytest.mark.parametrize("dtype", flatnonzero.DTYPES)
def test_nonzero(dtype):
    for count in (0, 1, CHUNK - 1, CHUNK, 2 * TILE + 3):
        mask = np.random.default_rng(count).integers(-1, 2, count).astype(dtype)
        before, kept = run(CountNonzero(dtype), [mask], [((-(-count // CHUNK),), "int64"), ((1,), "int64")])
        expected = flatnonzero.naive(mask)
        assert kept.tolist() == [len(expected)]
        (index,) = run(FillNonzero(dtype), [mask, before], [((len(expected),), "int32")])
        np.testing.assert_array_equal(index, expected)


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 3, 2)])
def test_children(factor):
    for rows in (0, 1, 65):
        coords = coordinates(rows, low=-50, high=50, batches=(0, 3))
        (out,) = run(Subdivide(factor), [coords], [((rows * int(np.prod(factor)), 4), "int32")])
        np.testing.assert_array_equal(out, subdivide.naive(coords, factor))


@pytest.mark.parametrize("window, shift", [((8, 8, 8), (0, 0, 0)), ((8, 5, 1), (4, -3, 2**40))])
def test_windows(window, shift):
    for rows in (0, 1, 300):
        coords = coordinates(rows, low=-20, high=20, batches=(0, 2, 7))
        (out,) = run(WindowCoords(window), [coords, *shift], [((rows, 4), "int32")])
        moved = coords + np.array([0, *(s % w for s, w in zip(shift, window, strict=True))])
        np.testing.assert_array_equal(out, moved // np.array([1, *window]))
        unique, group = np.unique(out, axis=0, return_inverse=True)
        made = run(GroupRows(), [group.reshape(-1).astype("int32")], [((rows,), "int32"), ((len(unique) + 1,), "int32")])
        remainders = [s % w for s, w in zip(shift, window, strict=True)]
        for given, expected in zip(made, windows.naive(coords, window, remainders), strict=True):
            np.testing.assert_array_equal(given, expected)


def test_windows_of_rows_out_of_range():
    coords = coordinates(300, batches=(0, 5))
    coords[200, 1] = 40000
    coords[20, 2] = -50000
    coords[250, 1] = -40000
    words = "coords: row 200 has x 40000, expected -32768 to 32767"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        run(WindowCoords((8, 8, 8)), [coords, 0, 0, 0], [((300, 4), "int32")])


def test_more_than_a_digit_of_groups():
    group = np.random.default_rng(0).integers(0, 700, 3000).astype("int32")
    order, offsets = run(GroupRows(), [group], [((3000,), "int32"), ((701,), "int32")])
    np.testing.assert_array_equal(order, np.argsort(group, kind="stable"))
    np.testing.assert_array_equal(offsets, np.searchsorted(np.sort(group), np.arange(701)))


@pytest.mark.parametrize("bits", [1, 10, 16])
@pytest.mark.parametrize("mode", MODES)
def test_codes(mode, bits):
    for rows in (0, 1, 400):
        shift = (3, -2, 2**14) if bits == 16 else (0, -1, 1)
        low = np.array([0, *(-s for s in shift)])
        coords = low + coordinates(rows, high=2**bits, batches=(0, BATCH_LIMIT - 1))
        coords = coords.astype("int32")
        (code,) = run(Serialize(mode, bits), [coords, *shift], [((rows,), code_dtype(bits))])
        expected = serialize.naive(coords, mode, shift, bits)
        np.testing.assert_array_equal(code, expected)
        (keys,) = run(SerialKeys(bits), [coords, code], [((rows, 4), "int32")])
        np.testing.assert_array_equal(
            np.lexsort(keys.T[::-1]), np.lexsort((np.arange(rows), expected, coords[:, 0])), err_msg="keys ascend as codes"
        )


def test_codes_of_rows_out_of_range():
    coords = coordinates(300, high=1023)
    coords[7, 3] = 1023
    words = "coords: row 7 has z 1023, expected -1 to 1022"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        run(Serialize("hilbert"), [coords, 0, 0, 1], [((300,), "int32")])


@pytest.mark.parametrize("size, shift", [(1, 0), (7, 0), (64, 13), (100, -1), (2**62, 5)])
def test_cuts(size, shift):
    for rows in (0, 1, 500):
        coords = coordinates(rows, high=32, batches=(0, 3, 4, BATCH_LIMIT - 1))
        code = serialize.naive(coords)
        order = np.lexsort((np.arange(rows), code, coords[:, 0])).astype("int32")
        keys = np.concatenate([coords[:, :1], np.zeros((rows, 3), "int32")], 1)
        lengths, total = run(CountCuts(), [keys, size], [((BATCH_LIMIT,), "int64"), ((2,), "int64")])
        np.testing.assert_array_equal(lengths, np.bincount(coords[:, 0], minlength=BATCH_LIMIT))
        expected = serialize.naive_partition(coords, code, size, shift)
        assert total.tolist() == [len(expected[1]) - 1, len(expected[2])]
        outputs = [(part.shape, "int32") for part in expected]
        made = run(CutSequence(), [order, lengths, size, shift], outputs)
        for given, part in zip(made, expected, strict=True):
            np.testing.assert_array_equal(given, part)
    same_bits(lambda: run(CutSequence(), [order, lengths, size, shift], outputs))
