"""`linear` with integer products: every instruction against an oracle of exact integers, channels apart, what is not finite."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import tvm

from sparse_ops import op
from sparse_ops.build import build
from sparse_ops.testing.examples import features
from tests.instruction_sets import INTEGER_ISAS, ISAS
from tests.sparse_ops.test_linear import arguments
from tests.sparse_ops.walk import digest, evaluate, module_of, run, run_with
from tests.tolerance import assert_close
from tir_kernels.cpu import int8_linear
from tir_kernels.cpu.isa import AVX512, PORTABLE, Isa, forced_isa
from tir_kernels.dispatch import KERNELS, Kernel, host_target, kernel_for
from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.int8_linear import APART, MOST_DEPTH, levels, naive, padded, quantize, rotate, signs
from tir_kernels.spec.linear import Linear
from tir_kernels.spec.linear import naive as exact

STEPS = 5  # float32 roundings behind a value: the product with the scales, bias, gate, residual, activation


def kernel_of(cin: int, cout: int, isa: Isa, **options) -> Kernel:
    """For any sizes, whether or not they pay; of 7 bits where that is all there is."""
    products = "int7" if isa.integer[0] == "vpmaddubsw" else "int8"
    spec = Linear(cin, cout, products=products, **options)
    name = f"int8_linear_{isa.integer[0]}"
    with forced_isa(isa):
        return next(row for row in KERNELS["linear"] if row.name == name).make(spec, host_target())


def packed_by(kernel: Kernel, weight: np.ndarray) -> np.ndarray:
    packed = tvm.runtime.empty(kernel.weight.shape, kernel.weight.dtype)
    tvm.compile(tvm.IRModule({"main": kernel.weight.pack}), target=host_target())["main"](tvm.runtime.tensor(weight), packed)
    return packed.numpy()


def compiled(kernel: Kernel):
    return tvm.compile(tvm.IRModule({"main": kernel.function}), target=host_target())["main"]


def call(function, x, packed, *rest, cout: int, dtype: str = "float32") -> np.ndarray:
    """The result of a kernel, over an output full of NaN."""
    out = np.full((len(x), cout), np.nan).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    out = tvm.runtime.tensor(out)
    function(*(tvm.runtime.tensor(value) for value in (x, packed, *rest)), out)
    return out.numpy()


def outliers(rng, rows: int, depth: int, channels, size: float) -> np.ndarray:
    """Normal values, with a few channels that are large throughout."""
    x = rng.standard_normal((rows, depth)).astype("float32")
    factors = size * np.resize([1, -0.6, 0.4], len(channels))
    x[:, channels] = factors * (1 + 0.15 * rng.standard_normal((rows, len(channels))))
    return x


def centred_error(out: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 error of outputs whose mean over the rows is taken out."""
    return float(np.linalg.norm(out - expected) / np.linalg.norm(expected - expected.mean(0)))


def test_a_rotation_keeps_products():
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal((rows, 100)).astype("float32") for rows in (7, 5))
    assert rotate(x).shape == (7, 128)
    assert_close(rotate(x) @ rotate(weight).T * 64, exact(x, weight), 100, dtype="float32")
    assert set(signs(100)) == {np.float32(1 / 64), np.float32(-1 / 64)} and 0.4 < (signs(1 << 16) > 0).mean() < 0.6


def test_the_oracle_is_near_the_linear_layer():
    given = arguments(rows=50, cin=300, cout=70)
    expected = exact(**given, activation="gelu")
    for bits, most in (((8, 8), 0.02), ((7, 8), 0.03), ((10, 10), 0.005)):
        error = centred_error(naive(**given, activation="gelu", bits=bits), expected)
        assert most / 10 < error < most


@pytest.mark.parametrize(("cin", "cout"), [(1, 1), (100, 70), (433, 64), (1024, 131), (4096, 33)], ids=lambda n: str(n))
def test_sizes(cin, cout, integer_isa):
    rng = np.random.default_rng(cin)
    kernel = kernel_of(cin, cout, integer_isa)
    weight, bias = features(rng, cout, cin), features(rng, cout)
    packed, function = packed_by(kernel, weight), compiled(kernel)
    of_weight, scale = quantize(weight, levels(cin, kernel.bits[1]))
    assert_close(kernel.weight.unpack(packed), (rotated_back(of_weight * scale[:, None], cin)), 8, dtype="float32")
    for rows in (0, 1, 2, 3, 5, 6, 7, 13, 97):
        x = features(rng, rows, cin)
        out = call(function, x, packed, bias, cout=cout)
        assert_close(out, naive(x, weight, bias, bits=kernel.bits), STEPS, dtype="float32")


def rotated_back(rows: np.ndarray, depth: int) -> np.ndarray:
    """What `rotate` times 64 made these rows of."""
    sign = signs(rows.shape[1]).astype(np.float64)
    matrix = rotate(np.eye(rows.shape[1], dtype=np.float32)).astype(np.float64)
    return (rows @ matrix.T * 64)[:, :depth] * np.abs(sign[:depth]) * 64


def test_blocks_of_rows(integer_isa):
    """Several blocks, and more rows than are rounded at a time."""
    rng = np.random.default_rng(0)
    kernel = kernel_of(64, 64, integer_isa)
    weight, bias = features(rng, 64, 64), features(rng, 64)
    packed, function = packed_by(kernel, weight), compiled(kernel)
    for rows in (int8_linear.BLOCK_ROWS + 1, 2 * int8_linear.CHUNK_ROWS + 5):
        x = features(rng, rows, 64)
        out = call(function, x, packed, bias, cout=64)
        assert_close(out, naive(x, weight, bias, bits=kernel.bits), STEPS, dtype="float32")


def test_forms_of_the_same_bits_agree():
    """Bits do not depend on the instruction set, the register tile or who stands beside a row."""
    rng = np.random.default_rng(0)
    x, weight, bias = outliers(rng, 61, 300, [5, 250], 50), features(rng, 90, 300), features(rng, 90)
    results = {}
    for isa in INTEGER_ISAS.values():
        kernel = kernel_of(300, 90, isa, activation="gelu")
        packed, function = kernel.weight.with_apart(packed_by(kernel, weight), weight, [250]), compiled(kernel)
        out = call(function, x, packed, bias, cout=90)
        results.setdefault(kernel.bits, []).append(out)
        np.testing.assert_array_equal(call(function, x[11:12], packed, bias, cout=90), out[11:12])
    assert {bits: len(found) for bits, found in results.items()} == {(8, 8): 3, (10, 10): 1, (7, 8): 2}
    for found in results.values():
        for out in found[1:]:
            np.testing.assert_array_equal(out, found[0])


def native() -> list[Isa]:
    """The forms that this machine has instructions for."""
    features = set(tvm.target.codegen.llvm_get_cpu_features(host_target()))
    needs = {
        "vpdpbusd_512": {"avx512vnni"},
        "vpdpbusd_256": {"avxvnni"} if "avxvnni" in features else {"avx512vnni", "avx512vl"},
        "sdot": {"dotprod"},
        "vpmaddwd": {"avx2", "fma"},
        "vpmaddubsw_256": {"avx2", "fma"},
        "vpmaddubsw_512": {"avx512bw"},
    }
    return [replace(isa, emulate_integer=False) for name, isa in INTEGER_ISAS.items() if needs[name] <= features]


@pytest.mark.parametrize("isa", native(), ids=lambda isa: f"{isa.integer[0]}_{32 * isa.lanes}")
def test_an_instruction_gives_the_bits_of_its_emulation(isa):
    rng = np.random.default_rng(0)
    x, weight, bias = features(rng, 13, 300), features(rng, 70, 300), features(rng, 70)
    kernels = [kernel_of(300, 70, one) for one in (isa, replace(isa, emulate_integer=True))]
    outs = [call(compiled(kernel), x, packed_by(kernel, weight), bias, cout=70) for kernel in kernels]
    np.testing.assert_array_equal(*outs)


@pytest.mark.parametrize("cin", [100, 8192, 8192 + 64, MOST_DEPTH])
def test_the_largest_sums_fit(cin, integer_isa):
    """Rows and weights whose rotated values are all of the largest size, of one sign and of both."""
    wide = padded(cin)
    shape = np.stack([np.ones(wide), np.where(np.arange(wide) % 3 == 0, -1, 1), np.where(np.arange(wide) < wide // 2, 1, -1)])
    sign = signs(wide)
    x = (rotate(shape / sign) * sign)[:, :cin]  # a rotation is its own inverse, but for signs and 64
    x = np.concatenate([x, -x])
    kernel = kernel_of(cin, 64, integer_isa)
    weight = np.zeros((64, cin), "float32")
    weight[:6] = x
    out = call(compiled(kernel), x, packed_by(kernel, weight), np.zeros(64, "float32"), cout=64)
    q, _ = quantize(x, levels(cin, kernel.bits[0]))
    if cin % 64 == 0:
        assert (np.abs(q) == levels(cin, kernel.bits[0])).all()
    assert_close(out, naive(x, weight, bits=kernel.bits), STEPS, dtype="float32")


def test_rows_that_are_not_finite_and_rows_at_the_limits(integer_isa):
    rng = np.random.default_rng(0)
    x, weight, bias = features(rng, 11, 200), features(rng, 70, 200), features(rng, 70)
    x[0] = 0
    x[1] = 1e-40
    x[2] = np.where(rng.random(200) < 0.5, 3e38, -3e38)
    x[3] = 3e38 * np.sign(signs(200))  # every sum of the rotation is as large as it can be
    x[4, 7], x[5, 199], x[6, 0] = np.nan, np.inf, -np.inf
    x[7] = np.finfo("float32").max
    weight = weight * np.float32(1e-3)
    weight[3, 5], weight[4, 199], weight[5] = np.nan, np.inf, 0
    kernel = kernel_of(200, 70, integer_isa)
    packed, function = packed_by(kernel, weight), compiled(kernel)
    for channels in ([], [0, 7, 199]):
        out = call(function, x, kernel.weight.with_apart(packed, weight, channels), bias, cout=70)
        assert np.isnan(out[4:7]).all() and np.isnan(out[:, 3:5]).all()
        good = np.delete(np.arange(11), [4, 5, 6])
        columns = np.delete(np.arange(70), [3, 4])
        expected = naive(x, weight, bias, bits=kernel.bits, apart=channels)
        for row in good:  # each on its own scale
            assert_close(out[row, columns], expected[row, columns], STEPS + len(channels), dtype="float32")
        np.testing.assert_array_equal(out[0, columns], bias[columns])
        np.testing.assert_array_equal(out[1, columns], bias[columns])
        np.testing.assert_array_equal(out[good, 5], expected[good, 5].astype("float32"))


def test_channels_apart(integer_isa):
    rng = np.random.default_rng(0)
    channels = [299, 0, 64, 7, 130]
    x, weight, bias = outliers(rng, 40, 300, channels, 400), features(rng, 70, 300), features(rng, 70)
    kernel = kernel_of(300, 70, integer_isa)
    layout, function = kernel.weight, compiled(kernel)
    packed = packed_by(kernel, weight)
    expected = exact(x, weight, bias)
    assert layout.apart(packed) == []
    kept = layout.with_apart(packed, weight, channels)
    assert layout.apart(kept) == channels and layout.apart(packed) == []
    np.testing.assert_array_equal(layout.with_apart(kept, weight, []), packed)
    out = call(function, x, kept, bias, cout=70)
    scale = np.abs(x).max() * np.abs(weight).max()  # large terms may cancel
    assert_close(out, naive(x, weight, bias, bits=kernel.bits, apart=channels), STEPS + APART, dtype="float32", scale=scale)
    plain = call(function, x, packed, bias, cout=70)
    assert centred_error(out, expected) < centred_error(plain, expected) / 3


@pytest.mark.parametrize(
    ("channels", "says"),
    [
        (range(9), r"channels: expected at most 8 distinct ones of 0 to 299, given \[0, 1, 2"),
        ([3, 3], r"channels: expected at most 8 distinct ones of 0 to 299, given \[3, 3\]"),
        ([300], r"channels: expected at most 8 distinct ones of 0 to 299, given \[300\]"),
        ([-1], r"channels: .* given \[-1\]"),
    ],
)
def test_wrong_channels_are_named(channels, says):
    layout = kernel_of(300, 70, INTEGER_ISAS["sdot"]).weight
    packed = np.zeros(layout.shape, "int32")
    with pytest.raises(ValueError, match=says):
        layout.with_apart(packed, np.zeros((70, 300), "float32"), channels)
    with pytest.raises(ValueError, match=r"weight: expected the shape \[70, 300\], given \[70, 299\]"):
        layout.with_apart(packed, np.zeros((70, 299), "float32"), [])
    with pytest.raises(ValueError, match=r"packed: expected the shape \[.*\], given \[1, "):
        layout.with_apart(packed[:1], np.zeros((70, 300), "float32"), [])


@pytest.mark.parametrize("size", [0, 100, 700], ids=lambda size: f"outliers of {size}")
@pytest.mark.parametrize("cin", [1024, 1000])
def test_errors_of_eight_bits(size, cin):
    """The bound of 1.2 percent of the issue, with the largest channels apart; a rotation alone does not reach it."""
    rng = np.random.default_rng(1)
    at = [3, 500, 901]
    x = outliers(rng, 256, cin, at, size) if size else features(rng, 256, cin)
    weight = features(rng, 128, cin) / np.float32(np.sqrt(cin))
    expected = exact(x, weight)
    assert centred_error(naive(x, weight, apart=at if size else ()), expected) < 0.012
    if size:
        assert centred_error(naive(x, weight), expected) > 0.03


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "names",
    [(), ("bias", "gate", "residual"), ("bias", "residual", "gate", "batch_index")],
    ids=["alone", "one gate", "all"],
)
def test_arguments(names, dtype):
    batch = 3 if "batch_index" in names else 1
    given = {
        name: array for name, array in arguments(41, 100, 90, batch, dtype=dtype).items() if name in ("x", "weight", *names)
    }
    with forced_isa(ISAS["avx512"]):
        out = evaluate(
            lambda *args: op.linear(**dict(zip(given, args, strict=True)), activation="silu", products="int8"), *given.values()
        )
    expected = naive(**given, activation="silu")
    assert_close(out, expected, STEPS if dtype == "float32" else 1, dtype=given["x"].dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16"])
def test_activations_and_results_of_another_dtype(activation, out_dtype):
    x, weight, bias = (arguments(20, 70, 69)[name] for name in ("x", "weight", "bias"))
    with forced_isa(ISAS["avx512"]):
        kernel = kernel_for(Linear(70, 69, activation=activation, out_dtype=out_dtype, products="int8"))
        out = call(compiled(kernel), x, packed_by(kernel, weight), bias, cout=69, dtype=out_dtype)
    assert_close(out, naive(x, weight, bias, activation=activation), STEPS if out_dtype == "float32" else 1, dtype=out.dtype)


def test_same_bits_with_any_number_of_threads():
    with forced_isa(ISAS["avx512"]):
        given = {name: array for name, array in arguments(901, 320, 200).items() if name in ("x", "weight", "bias")}
        mod = module_of(
            lambda *args: op.linear(*args, products="int8"), list(given.values()), [a.shape for a in given.values()]
        )
        executable = build(mod)
    bits = {digest(run_with(count, executable, list(given.values()))) for count in (1, 2)}
    assert len(bits) == 1
    assert_close(run(executable, list(given.values()))[0], naive(**given), STEPS, dtype="float32")


@pytest.mark.parametrize(
    ("cpu", "int8", "int7"),
    [
        ("haswell", "linear", "linear"),
        ("broadwell", "linear", "linear"),
        ("skylake", "int8_linear_vpmaddwd", "int8_linear_vpmaddubsw"),
        ("znver1", "linear", "linear"),
        ("znver2", "linear", "linear"),
        ("znver3", "int8_linear_vpmaddwd", "int8_linear_vpmaddubsw"),
        ("znver4", *["int8_linear_vpdpbusd"] * 2),
        ("skylake-avx512", "linear", "int8_linear_vpmaddubsw"),
        ("cascadelake", *["int8_linear_vpdpbusd"] * 2),
        ("alderlake", *["int8_linear_vpdpbusd"] * 2),
        ("x86-64", "linear", "linear"),
        ("cortex-a72", "linear", "linear"),
        ("neoverse-n1", *["int8_linear_sdot"] * 2),
    ],
)
def test_what_runs_where(cpu, int8, int7):
    triple = f"{'aarch64' if cpu in ('cortex-a72', 'neoverse-n1') else 'x86_64'}-unknown-linux-gnu"
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu, "mtriple": triple})
    assert kernel_for(Linear(128, 128, products="int8"), target).name == int8
    assert kernel_for(Linear(128, 128, products="int7"), target).name == int7
    assert kernel_for(Linear(128, 128), target).name == "linear"


def test_refusals_tell_why():
    def reason(name, isa, **options):
        row = next(row for row in KERNELS["linear"] if row.name == f"int8_linear_{name}")
        with forced_isa(isa):
            return row.accepts(Linear(**{"cin": 128, "cout": 128, "products": "int8"} | options), host_target())

    has = INTEGER_ISAS["vpdpbusd_512"]
    assert reason("vpdpbusd", has) is None
    assert reason("vpdpbusd", has, products="float") == "products: expected integers, given 'float'"
    for isa in (PORTABLE, AVX512):
        assert reason("vpdpbusd", isa).startswith("expected a CPU that gains by vpdpbusd")
    assert "expected at most 65536" in reason("vpdpbusd", has, cin=MOST_DEPTH + 1)
    assert "does not pay for 0 -> 128 channels" in reason("vpdpbusd", has, cin=0)
    assert "does not pay for 128 -> 63 channels" in reason("vpdpbusd", has, cout=63)
    assert "takes 7 bits, given 'int8'" in reason("vpmaddubsw", INTEGER_ISAS["vpmaddubsw_256"])


def test_an_unknown_kind_of_products():
    with pytest.raises(ValueError, match=r"linear: products: expected one of 'float', 'tf32', 'int8', 'int7', given 'int4'"):
        op.linear(None, None, products="int4")
