"""Register tiles are registers: read from the assembly of modules as users build them, for CPUs that the machine need not have.

A kernel that keeps its sums in memory computes the right values at a fifth of its speed, and may do so only beside other
kernels. So modules of several ops are built with their weights lifted, as models are, and every innermost loop that multiplies
is searched for stores of vectors to an address that does not change, and for calls. Each kernel must also have a loop with as
many multiply-adds as its tile has vectors, or there would be nothing to find.
"""

import re
from collections import Counter
from dataclasses import replace

import pytest
import tvm
from tvm import relax

from sparse_ops.build import build
from sparse_ops.op import (
    attention,
    conv3d,
    conv_transpose3d,
    linear,
    pool,
    segment_pool,
    sparse_conv,
    sparse_conv_weight_gradient,
    upsampled_conv,
)
from tests.tir_kernels.assembly import X86, AArch64, Loop, loops
from tir_kernels.cpu.isa import AVX2, AVX512, AVX512_BF16, NEON, Isa, Tile

ISAS = {
    "haswell": AVX2,
    "znver3": AVX2,
    "skylake-avx512": AVX512,
    "sapphirerapids": AVX512_BF16,
    "znver4": AVX512_BF16,
    "znver5": AVX512_BF16,
    "neoverse-n1": NEON,
    "neoverse-v1": NEON,
    "skylake": AVX2,
    "alderlake": AVX2,
}
LEAST = 4  # multiply-adds of a loop that counts

# Stores that are spills, at most in one loop, by what the kernel's name begins with: Winograd's transforms of 4^2 vectors, and
# SiLU of several vectors at a time, need more than sixteen registers.
SPILLS = {(AVX2, "conv3d_winograd"): 12, (AVX2, "gather_gemm"): 2}


class Inputs:
    """The parameters of a module: inputs first, then weights."""

    def __init__(self, dtype: str):
        self.dtype, self.inputs, self.weights = dtype, [], []

    def given(self, *shape, dtype=None):
        return self._add(self.inputs, "x", shape, dtype)

    def weight(self, *shape, dtype=None):
        return self._add(self.weights, "w", shape, dtype)

    def _add(self, to, letter, shape, dtype):
        shape = [tvm.tirx.Var(size, "int64") if isinstance(size, str) else size for size in shape]
        to.append(relax.Var(f"{letter}{len(to)}", relax.TensorType(shape, dtype or self.dtype)))
        return to[-1]

    def rows(self):
        return tvm.tirx.Var("n", "int64")

    def kernel_map(self):
        pairs = [self.given("blocks", "slots", dtype="int32") for _ in range(2)]
        return relax.Tuple([*pairs, self.given("blocks", "columns", dtype="int32"), self.given(2, dtype="int64")])


def sparse(i: Inputs, cin, cout, has_residual=False, **options):
    rows = i.rows()
    residual = i.given(rows, cout) if has_residual else None
    x, weight, coords = i.given("n", cin), i.weight(cout, 3, 3, 3, cin), i.given(rows, 4, dtype="int32")
    return sparse_conv(x, weight, i.kernel_map(), coords, residual=residual, **options)


def grouped(i: Inputs, cin, cout, groups, **options):
    x, weight, coords = i.given("n", cin), i.weight(cout, 3, 3, 3, cin // groups), i.given(i.rows(), 4, dtype="int32")
    return sparse_conv(x, weight, i.kernel_map(), coords, groups=groups, **options)


def weight_gradient(i: Inputs, cin, cout, groups=1):
    return sparse_conv_weight_gradient(i.given("n", cin), i.given("m", cout), i.kernel_map(), 3, groups)


def plain_linear(i: Inputs, cin, cout):
    return linear(i.given("n", cin), i.weight(cout, cin))


def integer_linear(i: Inputs, cin, cout, products="int8"):
    return linear(i.given("n", cin), i.weight(cout, cin), products=products)


def full_linear(i: Inputs, cin, cout, activation, products="float"):
    rows = i.rows()
    gate, index = i.given("b", cout, dtype="float32"), i.given(rows, dtype="int32")
    bias = i.weight(cout, dtype="float32")
    return linear(
        i.given(rows, cin), i.weight(cout, cin), bias, i.given(rows, cout), activation, gate, index, products=products
    )


def attend(i: Inputs, heads, depth):
    q, k, batch = i.given("n", heads, depth), i.rows(), tvm.tirx.Var("b", "int64")
    offsets = [i.given(batch, dtype="int32") for _ in range(2)]
    return attention(q, i.given(k, heads, depth), i.given(k, heads, depth), *offsets)


def convolve(i: Inputs, cin, cout, kernel, **options):
    return conv3d(i.given("b", cin, "d", "h", "w"), i.weight(cout, cin, *(kernel,) * 3), **options)


def convolve_images(i: Inputs, cin, cout, padding_mode="zeros"):
    options = {"padding": (0, 1, 1), "padding_mode": padding_mode}
    return conv3d(i.given("b", cin, 1, "h", "w"), i.weight(cout, cin, 1, 3, 3), **options)


def transpose(i: Inputs, cin, cout, kernel):
    return conv_transpose3d(i.given("b", cin, 1, "h", "w"), i.weight(cin, cout, 1, kernel, kernel), stride=(1, 2, 2))


def upsampled(i: Inputs, cin, cout):
    return upsampled_conv(i.given("m", cin), i.weight(cout, 1, 3, 3, cin), i.kernel_map(), i.given("n", dtype="int32"))


def product(i: Inputs, depth, columns):
    """A matrix product of two inputs, which no kernel of ours takes: `ScheduleRest` puts it into register tiles."""
    batch = i.rows()
    return relax.op.matmul(i.given(batch, "n", depth), i.given(batch, depth, columns))


# What is built together: wide and narrow, odd, in a whole panel of columns and more.
FEW = {
    "float32": (
        lambda i: sparse(i, 128, 128),
        lambda i: sparse(i, 16, 16),
        lambda i: full_linear(i, 1024, 512, "gelu_tanh"),
        lambda i: plain_linear(i, 64, 64),
    ),
    "bfloat16": (
        lambda i: sparse(i, 100, 24),
        lambda i: sparse(i, 16, 16),  # of so few pairs that LLVM would unroll the loop over them
        lambda i: sparse(i, 32, 32),
        lambda i: plain_linear(i, 433, 70),
        lambda i: full_linear(i, 64, 64, "relu"),
    ),
}
FEW["float16"] = FEW["bfloat16"]
MANY = {
    "float32": (
        *FEW["float32"],
        lambda i: sparse(i, 33, 70, has_residual=True, activation="silu"),
        lambda i: grouped(i, 256, 256, 256),
        lambda i: grouped(i, 70, 140, 70, activation="silu"),
        lambda i: grouped(i, 64, 64, 16),  # four channels each, of several groups to a vector but with NEON
        lambda i: weight_gradient(i, 70, 96),
        lambda i: weight_gradient(i, 100, 100, groups=100),
        lambda i: plain_linear(i, 33, 20),
        lambda i: attend(i, 2, 64),
        lambda i: convolve(i, 33, 40, 3, stride=2, padding=1),
        lambda i: convolve(i, 32, 40, 3, padding=1),  # by Winograd's algorithm
        lambda i: convolve_images(i, 32, 40),  # too
        lambda i: convolve_images(i, 32, 40, "replicate"),
        lambda i: transpose(i, 33, 40, 2),
        lambda i: upsampled(i, 33, 40),
        lambda i: product(i, 50, 128),
    ),
    "bfloat16": (
        *FEW["bfloat16"],
        lambda i: grouped(i, 100, 100, 100, activation="relu"),
        lambda i: weight_gradient(i, 128, 40),
        lambda i: attend(i, 3, 40),
        lambda i: convolve(i, 17, 64, 1),
        lambda i: transpose(i, 33, 40, 3),
        lambda i: upsampled(i, 33, 40),
    ),
}
FAMILIES = {
    "float32": {
        "gather_gemm": 3,
        "depthwise_conv": 3,
        "weight_gradient": 1,
        "depthwise_weight_gradient": 1,
        "linear": 4,
        "attention": 1,
        "conv3d": 1,
        "conv3d_winograd": 3,
        "conv_transpose3d": 1,
    },
    "bfloat16": {
        "gather_gemm": 3,
        "depthwise_conv": 1,
        "weight_gradient": 1,
        "linear": 3,
        "attention": 1,
        "conv3d": 1,
        "conv_transpose3d": 1,
    },
}
# Every instruction set has all families, but for those that widen bfloat16 to what they do in float32; what is left of the CPUs
# has the two that run longest, so that these are judged on all of them, in both types.
CASES = [(cpu, "float32", MANY) for cpu in ("haswell", "skylake-avx512", "neoverse-n1")]
CASES += [(cpu, "bfloat16", MANY) for cpu in ("haswell", "sapphirerapids")]
CASES += [(cpu, "bfloat16", FEW) for cpu in ("znver3", "skylake-avx512", "znver4", "znver5", "neoverse-n1")]
CASES += [(cpu, "float32", FEW) for cpu in ("znver3", "znver4", "znver5", "sapphirerapids")]
# float16 has the loops of a widened bfloat16: what is looked at are its casts, and the kernel without dot where others have it.
CASES += [(cpu, "float16", FEW) for cpu in ("haswell", "skylake-avx512", "znver5", "neoverse-n1")]


def module(dtype: str, calls) -> tvm.IRModule:
    """One function that returns all calls, to be built with its weights lifted."""
    inputs = Inputs(dtype)
    values = [call(inputs) for call in calls]
    builder = relax.BlockBuilder()
    with builder.function("main", inputs.inputs + inputs.weights, attrs={"num_input": len(inputs.inputs)}):
        with builder.dataflow():
            result = builder.emit_output(relax.Tuple([builder.emit(value) for value in values]))
        builder.emit_func_output(result)
    return builder.get()


def assembly(mod) -> str:
    """The text of all code in a compiled module."""
    own = [mod.inspect_source("asm")] if mod.kind == "llvm" else []
    return "\n".join(own + [assembly(imported) for imported in mod.imports])


def built_text(cpu: str, dtype: str, calls) -> str:
    """The assembly of the calls, built together for a CPU."""
    triple = f"{'aarch64' if ISAS[cpu] == NEON else 'x86_64'}-unknown-linux-gnu"
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu, "mtriple": triple})
    assert replace(Isa.of(target), integer=()) == ISAS[cpu]
    return assembly(build(module(dtype, calls), target, lift_params=True).mod)


def built_loops(cpu: str, dtype: str, calls) -> list[Loop]:
    """The innermost loops of the calls, built together for a CPU."""
    return loops(built_text(cpu, dtype, calls), AArch64 if ISAS[cpu] == NEON else X86)


@pytest.mark.parametrize(("cpu", "dtype", "ops"), CASES, ids=[f"{cpu}-{dtype}" for cpu, dtype, _ in CASES])
def test_sums_are_registers(cpu, dtype, ops):
    isa, widest, bad, products, widened = ISAS[cpu], {}, [], [0], set()
    for loop in built_loops(cpu, dtype, ops[dtype]):
        kernel = loop.function.removeprefix("__tvm_ffi_")
        tile = re.search(r"(\w+?)_b?f\d\d_(\d+)x(\d+)__" + isa.name, kernel)
        if tile:
            widest.setdefault((kernel, *tile.groups()), []).append(loop.multiply_adds)
        bad += [f"{kernel} {loop.label}: {i}" for i in loop.calls if re.search("hfsf2|sfhf2", str(i))]
        if tile and any(re.match(r"vcvtph2ps .*[yz]mm|fcvtl ", str(i)) for i in loop.instructions):
            widened.add(tile[1])
        if kernel.startswith("matmul"):
            products.append(loop.multiply_adds)
        if loop.multiply_adds >= LEAST:
            stores, spills = loop.fixed_stores(), SPILLS.get((isa, tile and tile[1]), 0)
            if len(stores) > spills or loop.calls:
                bad += [f"{kernel} {loop.label}, {loop.multiply_adds} multiply-adds: {i}" for i in (*stores, *loop.calls)]
    assert not bad, "\n".join(bad)
    for (kernel, _, rows, cols), found in widest.items():
        assert max(found) >= int(rows) * int(cols) // isa.lanes, f"{kernel}: no loop over a whole tile, {sorted(found)}"
    assert dtype != "float16" or "linear" in widened, "rows are not widened by vectors"  # others do it without a loop
    if ops is MANY:
        found = Counter(family for _, family, _, _ in widest)
        if isa == NEON and dtype == "float32":  # groups of a whole vector are products
            found += Counter(depthwise_conv=1, gather_gemm=-1)
        assert +found == FAMILIES[dtype]
        tile = Tile.of(isa, 128).in_one_buffer()
        assert dtype == "bfloat16" or max(products) >= tile.rows * tile.vectors


# What adds integer products for a CPU, and how many vectors of sums its tile has
INTEGERS = [
    ("sapphirerapids", "int8", r"vpdpbusd .*%zmm", 24),
    ("znver4", "int8", r"vpdpbusd .*%zmm", 24),
    ("alderlake", "int8", r"vpdpbusd .*%ymm", 12),
    ("znver3", "int8", r"vpmaddwd .*%ymm", 8),
    ("znver3", "int7", r"vpmaddubsw .*%ymm", 10),
    ("skylake", "int8", r"vpmaddwd .*%ymm", 8),
    ("skylake-avx512", "int7", r"vpmaddubsw .*%zmm", 24),
    ("neoverse-n1", "int8", r"sdot v", 24),
    ("neoverse-v1", "int8", r"sdot v", 24),
]


@pytest.mark.parametrize(("cpu", "products", "instruction", "sums"), INTEGERS, ids=[f"{c}-{p}" for c, p, _, _ in INTEGERS])
def test_sums_of_integers_are_registers(cpu, products, instruction, sums):
    ops = (
        lambda i: full_linear(i, 1024, 512, "gelu_tanh", products),
        lambda i: integer_linear(i, 433, 70, products),
        lambda i: sparse(i, 64, 64, products=products),  # of few steps
        lambda i: sparse(i, 200, 70, has_residual=True, activation="silu", products=products),
        *(FEW["float32"] if cpu == "znver4" else ()),
    )
    kernels = {}
    for loop in built_loops(cpu, "float32", ops):
        if not re.search("int8_(linear|gather_gemm)", loop.function):
            continue
        found = sum(bool(re.match(instruction, str(i))) for i in loop.instructions)
        if found >= LEAST:
            kernels.setdefault(loop.function, []).append(found)
            assert not loop.fixed_stores() and not loop.calls, f"{loop.function} {loop.label}: {loop.fixed_stores()}"
    assert len(kernels) == 4
    for name, found in kernels.items():
        assert max(found) >= sums and len(found) >= 2, f"{name}: no loop over a whole tile, {found}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cpu", ["haswell", "skylake-avx512"])
def test_maxima_are_vectors(cpu, dtype):
    """Keeping NaN costs a comparison and a blend of vectors beside the maximum."""

    def of_segments(i: Inputs):
        return segment_pool(i.given("n", 64), i.given("n", dtype="int32"), i.given("m", 4, dtype="int32"), "max")

    def of_a_map(i: Inputs):
        return pool(i.given("n", 64), i.kernel_map(), i.given("m", 4, dtype="int32"), "max")

    for call in (of_segments, of_a_map):
        text = built_text(cpu, dtype, (call,))
        assert len(re.findall(r"vmaxps\s.*%[yz]mm", text)) >= 4 and len(re.findall(r"vcmpunordps\s.*%[yz]mm", text)) >= 4


@pytest.mark.parametrize("cpu", ["haswell", "skylake-avx512", "neoverse-n1"])
def test_short_rows_are_widened_by_vectors(cpu):
    """Left to LLVM, which unrolls a row of 64 whole, they are cast one by one, and the kernel takes three times as long."""
    opcode = r"\tfcvtl.*|\tfcvt\ts\d+, h.*" if ISAS[cpu] == NEON else r"\tvcvtph2ps\t.*"
    casts = re.findall(opcode, built_text(cpu, "float16", [lambda i: sparse(i, 64, 64)]))
    vectors = [cast for cast in casts if re.search(r"fcvtl|%[yz]mm\d+$", cast)]
    assert vectors and len(casts) - len(vectors) <= 16, f"{len(vectors)} of {len(casts)} casts are of vectors"
