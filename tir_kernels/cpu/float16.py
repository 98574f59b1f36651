"""Casts from and to float16 for CPUs without an instruction for them, spelled out in integers, which vectorize.

Kernels write `T.Cast`, which becomes one instruction a vector where the CPU has it (`Isa.converts_half`); elsewhere LLVM would
call a function for every element, and `spelled_out` puts in what stands here. Both round to nearest, ties to even; what
rounds to 2^16 or more becomes infinite. Nothing here reads or makes a subnormal float32, which a program may have its CPU
take for zero.
"""

from functools import cache

import tvm_ffi
from tvm import tirx

FRACTION = 23 - 10  # bits of the fraction that float32 has more than float16
BIAS = (127 - 15) << 23  # between the exponents of both, where they stand in a float32
LEAST_NORMAL = 2.0**-14


def _int(value: int) -> tirx.IntImm:
    return tirx.IntImm("int32", value)


def _bits(x: tirx.Expr, dtype: str) -> tirx.Expr:
    return tirx.reinterpret(dtype, x)


def widen(x: tirx.Expr) -> tirx.Expr:
    """float32 of a float16 expression, exactly; NaN of a NaN."""
    half = tirx.Var("half", "float16")  # not its bits: TVM bounds integers, and fails where a variable's bounds come out twice
    bits = tirx.Cast("int32", _bits(half, "uint16"))
    size = (bits & _int(0x7FFF)) << _int(FRACTION)  # exponent and fraction, where they stand in a float32
    # a subnormal is its fraction times 2^-24: put behind 2^-14, which is then taken away
    small = _bits(_bits(size | _int(113 << 23), "float32") - tirx.FloatImm("float32", LEAST_NORMAL), "int32")
    large = size + tirx.Select(size >= _int(31 << 23), _int(2 * BIAS), _int(BIAS))  # infinities and NaN have the last exponent
    wide = tirx.Select(size < _int(1 << 23), small, large) | ((bits & _int(0x8000)) << _int(16))
    return tirx.Let(half, x, _bits(wide, "float32"))


def narrow(x: tirx.Expr) -> tirx.Expr:
    """float16 of a float32 expression, rounded to nearest, ties to even; infinite from 65520 on, NaN of a NaN."""
    wide = tirx.Var("wide", "float32")
    bits = _bits(wide, "int32")
    size = bits & _int(0x7FFFFFFF)
    # added to 1/2, whose last bit is 2^-24, the addition itself rounds to a multiple of that
    small = _bits(_bits(size, "float32") + tirx.FloatImm("float32", 0.5), "int32") - _int(126 << 23)
    odd = (size >> _int(FRACTION)) & _int(1)
    normal = (size - _int(BIAS) + _int((1 << (FRACTION - 1)) - 1) + odd) >> _int(FRACTION)
    special = tirx.Select(size > _int(255 << 23), _int(0x7E00), _int(0x7C00))
    rounded = tirx.Select(size < _int((127 - 14) << 23), small, tirx.Select(size >= _int((127 + 16) << 23), special, normal))
    result = _bits(tirx.Cast("uint16", rounded | ((bits >> _int(16)) & _int(0x8000))), "float16")
    return tirx.Let(wide, x, result)


@cache
def spelled_out(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` without casts from or to float16."""

    def spell(cast: tirx.Cast) -> tirx.Expr:
        source, to = str(cast.value.ty.dtype), str(cast.ty.dtype)
        if source == "float16":
            return tirx.Cast(to, widen(cast.value)) if to != "float32" else widen(cast.value)
        if to == "float16" and not isinstance(cast.value, tirx.IntImm | tirx.FloatImm):
            return narrow(tirx.Cast("float32", cast.value) if source != "float32" else cast.value)
        return cast

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.Cast, spell)))
