"""`sparse_conv` with integer products: every instruction against an oracle of exact integers, NaN, refusals."""

import numpy as np
import pytest
import tvm

from sparse_ops import op
from sparse_ops.build import build
from sparse_ops.testing.examples import features, voxels
from tests.instruction_sets import INTEGER_ISAS, ISAS
from tests.sparse_ops.test_int8_linear import compiled, packed_by, rotated_back
from tests.sparse_ops.walk import digest, module_of, run, run_with
from tests.tolerance import assert_close
from tir_kernels.cpu.isa import AVX512, PORTABLE, Isa, forced_isa
from tir_kernels.dispatch import KERNELS, PAIRS, Kernel, host_target, kernel_for
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.int8_linear import MOST_DEPTH, levels, quantize
from tir_kernels.spec.int8_sparse_conv import naive
from tir_kernels.spec.kernel_map import naive_table
from tir_kernels.spec.sparse_conv import SparseConv
from tir_kernels.spec.sparse_conv import naive as exact

KERNEL = (1, 3, 3)
STEPS = 9 * 2 + 3  # float32 roundings behind a value: of each tap its scales and a sum, bias, residual, activation


def kernel_of(cin: int, cout: int, isa: Isa, **options) -> Kernel:
    """For any sizes, whether or not they pay; of 7 bits where that is all there is."""
    products = "int7" if isa.integer[0] == "vpmaddubsw" else "int8"
    spec = SparseConv(cin, cout, KERNEL, products=products, **options)
    name = f"int8_gather_gemm_{isa.integer[0]}"
    with forced_isa(isa):
        return next(row for row in KERNELS["sparse_conv"] if row.name == name).make(spec, host_target())


def arrays_of(table: np.ndarray, rows_in: int) -> list[np.ndarray]:
    """A map of this neighbour table, as kernels read it."""
    taps, rows_out = table.shape
    size = PAIRS.block_rows(rows_out)
    blocks = -(-rows_out // size)
    pair_in, pair_out = (np.full((blocks, taps * size), -7, "int32") for _ in range(2))
    segment = np.zeros((blocks, taps + 1), "int32")
    for block in range(blocks):
        for tap in range(taps):
            rows = table[tap, block * size : (block + 1) * size]
            (hit,) = np.nonzero(rows >= 0)
            start = segment[block, tap]
            segment[block, tap + 1] = start + len(hit)
            pair_in[block, start : start + len(hit)], pair_out[block, start : start + len(hit)] = rows[hit], hit
    return [pair_in, pair_out, segment, np.array([rows_in, rows_out], "int64")]


def random_table(rng, rows_in: int, rows_out: int) -> np.ndarray:
    """Of the taps of KERNEL, one of which is empty, where there are rows."""
    table = rng.integers(-rows_in // 2, max(rows_in, 1), (9, rows_out)).astype("int32")
    table[table >= rows_in] = -1
    table[5] = -1
    return np.maximum(table, -1)


def taps_of(weight: np.ndarray) -> np.ndarray:
    """A weight as the oracle takes it, [K, Cin, Cout]."""
    return weight.reshape(len(weight), -1, weight.shape[-1]).transpose(1, 2, 0)


@pytest.mark.parametrize(("cin", "cout"), [(1, 1), (64, 64), (100, 70), (200, 131), (1024, 64)], ids=str)
def test_sizes(cin, cout, integer_isa):
    rng = np.random.default_rng(cin)
    kernel = kernel_of(cin, cout, integer_isa)
    weight, bias = features(rng, cout, *KERNEL, cin), features(rng, cout)
    packed, function = packed_by(kernel, weight), compiled(kernel)
    of_weight, scale = quantize(weight.reshape(-1, cin), levels(cin, kernel.bits[1]))
    unpacked = kernel.weight.unpack(packed)
    assert_close(unpacked.reshape(-1, cin), rotated_back(of_weight * scale[:, None], cin), 8, dtype="float32")
    for rows_in, rows_out in ((0, 0), (0, 3), (3, 0), (1, 1), (7, 5), (40, 97)):
        x, table = features(rng, rows_in, cin), random_table(rng, rows_in, rows_out)
        out = call_map(function, x, packed, bias, table, cout)
        assert_close(out, naive(x, taps_of(weight), table, bias, bits=kernel.bits), STEPS, dtype="float32")


def call_map(function, x, packed, bias, table, cout) -> np.ndarray:
    """The result of a kernel, over an output full of NaN."""
    out = tvm.runtime.tensor(np.full((table.shape[1], cout), np.nan, "float32"))
    function(*(tvm.runtime.tensor(value) for value in (x, packed, bias, *arrays_of(table, len(x)))), out)
    return out.numpy()


def test_errors_of_eight_bits():
    rng = np.random.default_rng(0)
    x, weight = features(rng, 60, 128), taps_of(features(rng, 70, *KERNEL, 128))
    table = random_table(rng, 60, 80)
    expected = exact(x, weight, table)
    for bits, most in (((8, 8), 0.015), ((7, 8), 0.025), ((10, 10), 0.004)):
        error = np.linalg.norm(naive(x, weight, table, bits=bits) - expected) / np.linalg.norm(expected)
        assert most / 10 < error < most


def test_forms_of_the_same_bits_agree():
    """Bits do not depend on the instruction set, the register tile or what else a tap reaches."""
    rng = np.random.default_rng(0)
    x, weight, bias = features(rng, 61, 130), features(rng, 90, *KERNEL, 130), features(rng, 90)
    table, results = random_table(rng, 61, 150), {}
    for isa in INTEGER_ISAS.values():
        kernel = kernel_of(130, 90, isa, activation="silu")
        packed, function = packed_by(kernel, weight), compiled(kernel)
        out = call_map(function, x, packed, bias, table, 90)
        results.setdefault(kernel.bits, []).append(out)
        np.testing.assert_array_equal(call_map(function, x, packed, bias, table[:, 11:12], 90), out[11:12])
    assert {bits: len(found) for bits, found in results.items()} == {(8, 8): 3, (10, 10): 1, (7, 8): 2}
    for found in results.values():
        for out in found[1:]:
            np.testing.assert_array_equal(out, found[0])


def test_rows_that_are_not_finite(integer_isa):
    rng = np.random.default_rng(0)
    x, weight, bias = features(rng, 30, 100), features(rng, 70, *KERNEL, 100), features(rng, 70)
    x[0], x[1] = 0, 1e-40
    x[4, 7], x[5, 99], x[6, 0] = np.nan, np.inf, -np.inf
    weight[3, 0, 0, 1, 5], weight[4, 0, 2, 2, 99] = np.nan, np.inf
    table = random_table(rng, 30, 50)
    table[:, :8] = -1
    table[2, :8] = np.arange(8)
    kernel = kernel_of(100, 70, integer_isa)
    out = call_map(compiled(kernel), x, packed_by(kernel, weight), bias, table, 70)
    bad = np.isin(table, (4, 5, 6)).any(0)[:, None] | np.zeros(70, bool)
    bad[:, 3] |= table[1] >= 0
    bad[:, 4] |= table[8] >= 0
    np.testing.assert_array_equal(np.isnan(out), bad)
    expected = naive(x, taps_of(weight), table, bias, bits=kernel.bits)
    assert_close(out[~bad], expected[~bad], STEPS, dtype="float32")
    columns = np.delete(np.arange(70), [3, 4])
    np.testing.assert_array_equal(out[:2, columns], np.stack([bias[columns]] * 2))


def test_same_bits_with_any_number_of_threads():
    rng = np.random.default_rng(0)
    coords, x = voxels(rng, 901), features(rng, 901, 100)
    weight, bias, residual = features(rng, 70, 3, 3, 3, 100), features(rng, 70), features(rng, 901, 70)
    arrays = [coords, x, weight, bias, residual]
    with forced_isa(ISAS["avx512"]):
        mod = module_of(
            lambda c, x, w, b, r: op.sparse_conv(x, w, op.submanifold_map(c), c, b, r, "silu", products="int8"),
            arrays,
            [array.shape for array in arrays],
        )
        executable = build(mod)
    bits = {digest(run_with(count, executable, arrays)) for count in (1, 2)}
    assert len(bits) == 1
    table = naive_table(coords, coords, Geometry.submanifold((3, 3, 3)))
    expected = naive(x, taps_of(weight), table, bias, residual, "silu")
    assert_close(run(executable, arrays)[0], expected, 27 * 2 + 3, dtype="float32")


@pytest.mark.parametrize(
    ("cpu", "int8", "int7"),
    [
        ("haswell", "gather_gemm", "gather_gemm"),
        ("skylake", "int8_gather_gemm_vpmaddwd", "int8_gather_gemm_vpmaddubsw"),
        ("znver4", *["int8_gather_gemm_vpdpbusd"] * 2),
        ("skylake-avx512", "gather_gemm", "int8_gather_gemm_vpmaddubsw"),
        ("x86-64", "gather_gemm", "gather_gemm"),
    ],
)
def test_what_runs_where(cpu, int8, int7):
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu, "mtriple": "x86_64-unknown-linux-gnu"})
    assert kernel_for(SparseConv(128, 128, KERNEL, products="int8"), target).name == int8
    assert kernel_for(SparseConv(128, 128, KERNEL, products="int7"), target).name == int7
    assert kernel_for(SparseConv(128, 128, KERNEL), target).name == "gather_gemm"


def test_refusals_tell_why():
    def reason(isa, name="vpdpbusd", **options):
        row = next(row for row in KERNELS["sparse_conv"] if row.name == f"int8_gather_gemm_{name}")
        with forced_isa(isa):
            sizes = {"cin": 128, "cout": 128, "kernel": KERNEL, "products": "int8"}
            return row.accepts(SparseConv(**sizes | options), host_target())

    has = INTEGER_ISAS["vpdpbusd_512"]
    assert reason(has) is None
    assert reason(has, products="float") == "products: expected integers, given 'float'"
    for isa in (PORTABLE, AVX512):
        assert reason(isa).startswith("expected a CPU that gains by vpdpbusd")
    assert reason(has, groups=2) == "groups: expected 1, given 2"
    assert "expected at most 65536" in reason(has, cin=MOST_DEPTH + 1)
    assert "does not pay for 63 -> 128 channels" in reason(has, cin=63)
    assert "does not pay for 128 -> 63 channels" in reason(has, cout=63)
    assert "takes 7 bits, given 'int8'" in reason(INTEGER_ISAS["vpmaddubsw_256"], "vpmaddubsw")


def test_an_unknown_kind_of_products():
    with pytest.raises(
        ValueError, match=r"sparse_conv: products: expected one of 'float', 'tf32', 'int8', 'int7', given 'int4'"
    ):
        op.sparse_conv(None, None, None, None, products="int4")
