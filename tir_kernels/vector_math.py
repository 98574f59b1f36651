"""Vector functions of known accuracy, and the activations that kernels fuse into their last pass.

Each maps a float32 TIR expression to a float32 TIR expression of plain arithmetic, which vectorizes for any instruction set;
the C library's functions are called one lane at a time. Polynomials are minimax fits of our own: linear programming in
float64, with the coefficients rounded to float32 one after the other. The errors stated are the largest over a dense sweep of
all exponents, with fused multiply-add and without; `tests/test_activation_accuracy.py` holds the functions to them.

NaN gives NaN: a comparison with NaN is false, and `T.min` and `T.max` then return their second argument.
"""

from collections.abc import Callable
from math import pi, sqrt

import tvm
from tvm.script import tirx as T
from tvm_ffi.structural import structural_map

LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # ln(2) in two parts: the first has trailing zeros, so n * high is exact
ROUND = 1.5 * 2**23  # y + ROUND ends in the bits of y rounded to an integer

# (e^r - 1 - r) / r^2, for |r| <= ln(2) / 2; up to ln(2), where only results above 2^127.5 lead, eight times less accurate.
EXP = (0.5000007152557373, 0.16666537523269653, 0.04164310544729233, 0.008364681154489517, 0.0015399610856547952)
# -log(erfc(a)) / a, for 0 <= a <= 4, fit to the relative error of erf(a) and, 20 times looser, of erfc(a); it rises beyond.
LOG_ERFC = (
    1.128379225730896,
    0.6366158127784729,
    0.10281357169151306,
    -0.01927960105240345,
    4.259860361344181e-05,
    0.0015078745782375336,
    -0.0005769219133071601,
    0.00011510602780617774,
    -1.2499691365519539e-05,
    5.812271410832182e-07,
)


def bind(value):
    """A variable that holds `value`: computed once, however often it is used. It stands before the statement being written.

    TVM does not lower casts from bfloat16 inside of a binding and would read the bits as an integer: here they are spelled out.
    """

    def widen(cast):
        if str(cast.value.ty.dtype) != "bfloat16":
            return cast
        return T.reinterpret("float32", T.Cast("uint32", T.reinterpret("uint16", cast.value)) << T.uint32(16))

    return T.bind(structural_map(value, (tvm.tirx.Cast, widen)))


def polynomial(x, coefficients):
    """Horner's rule, lowest coefficient first."""
    value = T.float32(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + T.float32(coefficient)
    return value


def power(x):
    """s and q of e^x = s + s q: s a power of two.

    Cody–Waite reduction: x = n ln(2) + r and s = 2^n with -127 <= n <= 127, where 2^-127 counts as 0. There is no float32
    2^128, so just below the overflow r reaches up to ln(2).
    """
    x = bind(T.max(T.float32(-88), x))
    rounded = bind(T.min(T.float32(ROUND + 127), x * T.float32(LOG2_E) + T.float32(ROUND)))
    n = bind(rounded - T.float32(ROUND))
    r = bind(x - n * T.float32(LN2_HIGH) - n * T.float32(LN2_LOW))
    s = bind(T.reinterpret("float32", (T.reinterpret("int32", rounded) << 23) + T.int32(127 << 23)))
    return s, polynomial(r, EXP) * r * r + r


def exp(x):
    """e^x, within 1.3 ulp, and 4.5 ulp for x > 88.37. Results below 2^-126.5 are 0, those that overflow infinite."""
    s, q = power(x)
    return s * q + s


def expm1(x):
    """e^x - 1, within 2.5 ulp, and 4.5 ulp for x > 88.37."""
    s, q = power(x)
    return s * q + (s - T.float32(1))


def tanh(x):
    """(e^2x - 1) / (e^2x + 1), within 2.9 ulp."""
    y = bind(expm1(T.float32(2) * T.max(T.float32(-10), T.min(T.float32(10), x))))
    return y / (y + T.float32(2))


def log_erfc(a):
    """log(erfc(a)) of a bound variable a from 0 to 20; even and odd powers apart halve the chain of dependent operations."""
    square = bind(a * a)
    return -a * polynomial(square, LOG_ERFC[::2]) - square * polynomial(square, LOG_ERFC[1::2])


def erf(x):
    """The error function, 1 - erfc(|x|) with the sign of x: within 4.5 ulp, and 1.2e-7."""
    x = bind(x)
    y = bind(expm1(log_erfc(bind(T.min(T.float32(20), T.abs(x))))))
    return T.Select(x > T.float32(0), -y, y)


def silu(x):
    """x * sigmoid(x), within 2.5 ulp; below -88, where it is above -1e-36, it may be 0. NaN at minus infinity, as in torch."""
    x = bind(x)
    return x / (T.float32(1) + exp(-x))


def gelu(x):
    """x * Phi(x) with the normal distribution Phi, as max(x, 0) - |x| erfc(|x| / sqrt(2)) / 2.

    Within 4 ulp for x > -1, and 8e-8 below. Hendrycks and Gimpel, arXiv:1606.08415.
    """
    x = bind(x)
    size = bind(T.min(T.float32(20), T.abs(x)))  # Phi(-20) is 0, and 0 times infinity would be NaN
    tail = exp(log_erfc(bind(size * T.float32(sqrt(0.5)))))
    return T.max(T.float32(0), x) - T.float32(0.5) * size * tail


def gelu_tanh(x):
    """GELU by tanh, of the same paper: x (1 + tanh(u)) / 2 = x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3).

    Within 2.6 ulp for x > -1, and 5e-8 below. NaN at minus infinity, as in torch.
    """
    x = bind(x)
    factor = -2 * sqrt(2 / pi)
    return x / (T.float32(1) + exp(x * (T.float32(factor) + T.float32(0.044715 * factor) * x * x)))


# The activations of `spec.activation.ACTIVATIONS`, by name.
EMIT: dict[str, Callable] = {
    "none": lambda x: x,
    "relu": lambda x: T.max(T.float32(0), x),
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
}
