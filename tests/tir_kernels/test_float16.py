"""Casts from and to float16, by the instruction and spelled out: all 2^16 values, and what is hard to round."""

from functools import cache

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from tests.instruction_sets import ISAS
from tests.tir_kernels.assembly import X86, loops
from tir_kernels.cpu.float16 import spelled_out
from tir_kernels.cpu.isa import AVX2, NEON, PORTABLE, Isa, forced_isa, host_target
from tir_kernels.dispatch import kernel_for
from tir_kernels.spec.activation import Activation

ALL = np.arange(2**16, dtype="uint16").view("float16")


def cast(source, to):
    """PrimFunc (x `source` [n], out `to` [n])."""

    @T.prim_func(s_tir=True)
    def kernel(x_: T.handle, out_: T.handle):
        n = T.int64()
        x = T.match_buffer(x_, (n,), source)
        out = T.match_buffer(out_, (n,), to)
        for i in range(n):
            out[i] = T.Cast(to, x[i])

    return kernel


@cache
def compiled(source, to, spelled):
    kernel = cast(source, to)
    return tvm.compile(spelled_out(kernel) if spelled else kernel, host_target())


def run(x, to, spelled):
    out = tvm.runtime.tensor(np.full(x.shape, 7, to))
    compiled(str(x.dtype), to, spelled)(tvm.runtime.tensor(x), out)
    return out.numpy()


def assert_same_bits(found, expected):
    """NaN at the same places, and the same bits everywhere else."""
    bits = f"uint{8 * expected.itemsize}"
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found.view(bits)[~nan], expected.view(bits)[~nan])


def hard_to_round():
    """float32: halfway between neighbours among all float16, next to halfway, and random bits."""
    values = np.unique(ALL[np.isfinite(ALL)]).astype("float32")
    halves = ((values[:-1].astype("float64") + values[1:]) / 2).astype("float32")  # exact
    border = np.float32([65519.996, 65520, 65520.004, 65535, 65536, 1e5, 3e38, np.inf, 2.0**-25, 2.0**-26, 1e-40, 0, np.nan])
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype="uint32").view("float32")
    near = [np.nextafter(halves, np.float32(to)) for to in (np.inf, -np.inf)]
    return np.concatenate([values, halves, *near, border, -border, bits])


@pytest.mark.parametrize("spelled", [False, True], ids=["instruction", "spelled_out"])
def test_widening(spelled):
    assert_same_bits(run(ALL, "float32", spelled), ALL.astype("float32"))


@pytest.mark.parametrize("spelled", [False, True], ids=["instruction", "spelled_out"])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_narrowing(spelled):
    x = hard_to_round()
    assert_same_bits(run(x, "float16", spelled), x.astype("float16"))


def test_where_subnormal_float32_count_as_zero():
    """Programs may ask that of their CPU; a subnormal float16 is no subnormal float32."""
    torch = pytest.importorskip("torch")
    x = hard_to_round()
    with np.errstate(over="ignore"):
        expected = x.astype("float16")
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot be asked to")
    try:
        wide, narrow = run(ALL, "float32", True), run(x, "float16", True)
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(wide, ALL.astype("float32"))
    assert_same_bits(narrow, expected)


@pytest.mark.parametrize(("source", "to"), [("float16", "int32"), ("int32", "float16"), ("float16", "float64")])
def test_other_types(source, to):
    x = np.arange(-3000, 3000).astype(source)
    np.testing.assert_array_equal(run(x, to, True), x.astype(to))


def test_who_converts():
    assert [name for name, isa in ISAS.items() if not isa.converts_half] == ["portable"]
    by_hand = {"kind": "llvm", "mcpu": "x86-64", "mattr": ["+avx2", "+fma"], "mtriple": "x86_64-unknown-linux-gnu"}
    assert Isa.of(tvm.target.Target(by_hand)).converts_half is False
    by_hand["mattr"] += ["+f16c"]
    assert Isa.of(tvm.target.Target(by_hand)) == AVX2
    assert str(PORTABLE) != str(NEON) and "float16" in str(PORTABLE)


def test_only_kernels_that_need_it_are_spelled_out():
    text = {}
    for isa in (PORTABLE, AVX2):
        with forced_isa(isa):
            for dtype in ("float32", "float16"):
                text[isa.name, dtype] = kernel_for(Activation(1, "silu", dtype)).function.script()
    assert text["portable", "float32"] == text["avx2", "float32"]
    assert "reinterpret" in text["portable", "float16"] and text["portable", "float16"] != text["avx2", "float16"]


@pytest.mark.parametrize("cpu", ["x86-64", "x86-64-v2"])
def test_no_function_is_called_for_an_element(cpu):
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu, "mtriple": "x86_64-unknown-linux-gnu"})
    with target:
        kernel = kernel_for(Activation(1, "silu", "float16")).function
    text = tvm.compile(kernel, target).mod.inspect_source("asm")
    assert "callq\t__extendhfsf2" not in text and "callq\t__truncsfhf2" not in text
    wide = [loop for loop in loops(text, X86) if any("ps" in str(i) for i in loop.instructions)]
    assert wide, "no loop works on vectors"
