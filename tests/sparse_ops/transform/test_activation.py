"""`RecognizeActivation`: what is written out, in several ways, and what only looks like it."""

from math import pi, sqrt

import numpy as np
import pytest
from tvm import relax

from sparse_ops.transform import RecognizeActivation
from tests.sparse_ops.transform.graphs import arrays, graph, ops
from tests.sparse_ops.transform.interpret import interpret
from tests.tolerance import assert_close

R = relax.op


def const(value):
    return relax.const(value, "float32")


def times(*factors):
    """The product of some factors, from the left."""
    product, *rest = factors
    for factor in rest:
        product = R.multiply(product, factor)
    return product


def cubic(x, cube):
    return times(R.add(x, times(const(0.044715), cube)), const(sqrt(2 / pi)))


WRITTEN_OUT = {
    "silu": ("nn.silu", lambda x: times(x, R.sigmoid(x))),
    "silu, exchanged": ("nn.silu", lambda x: times(R.sigmoid(x), x)),
    "gelu": ("nn.gelu", lambda x: times(x, const(0.5), R.add(R.erf(times(x, const(sqrt(0.5)))), const(1.0)))),
    "gelu, halved last": (
        "nn.gelu",
        lambda x: times(const(0.5), times(x, R.add(const(1.0), R.erf(R.divide(x, const(sqrt(2))))))),
    ),
    "gelu, divided": (
        "nn.gelu",
        lambda x: R.divide(times(R.add(R.erf(times(const(sqrt(0.5)), x)), const(1.0)), x), const(2.0)),
    ),
    "gelu_tanh": ("nn.gelu_tanh", lambda x: times(const(0.5), x, R.add(const(1.0), R.tanh(cubic(x, times(x, x, x)))))),
    "gelu_tanh, a power": (
        "nn.gelu_tanh",
        lambda x: times(R.add(R.tanh(cubic(x, R.power(x, const(3.0)))), const(1.0)), times(x, const(0.5))),
    ),
}


@pytest.mark.parametrize("case", WRITTEN_OUT)
def test_written_out(case):
    expected, expr = WRITTEN_OUT[case]
    before = graph(expr, (5, 8))
    after = RecognizeActivation()(before)
    assert ops(after) == [expected]
    (x,) = arrays((5, 8))
    assert_close(interpret(after, x), interpret(before, x), depth=8, dtype="float32")  # the constants are float32


OTHERS = {
    "of another value": lambda x: times(x, R.sigmoid(R.add(x, x))),
    "not halved": lambda x: times(x, R.add(R.erf(times(x, const(sqrt(0.5)))), const(1.0))),
    "another slope": lambda x: times(x, const(0.5), R.add(R.erf(times(x, const(0.7))), const(1.0))),
    "a third factor": lambda x: times(x, x, R.sigmoid(x)),
    "another coefficient": lambda x: times(const(0.5), x, R.add(const(1.0), R.tanh(times(x, const(sqrt(2 / pi)))))),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_only_looks_like_it(case):
    before = graph(OTHERS[case], (5, 8))
    assert ops(RecognizeActivation()(before)) == ops(before)


def test_a_product_as_argument():
    """x is a product itself, and read by both of the factors."""

    def silu_of_product(a, b):
        x = relax.BlockBuilder.current().emit(times(a, b))
        return times(x, R.sigmoid(x))

    before = graph(silu_of_product, (5, 8), (5, 8))
    after = RecognizeActivation()(before)
    assert ops(after) == ["multiply", "nn.silu"]
    given = arrays((5, 8), (5, 8))
    np.testing.assert_allclose(interpret(after, *given), interpret(before, *given), rtol=1e-12)
