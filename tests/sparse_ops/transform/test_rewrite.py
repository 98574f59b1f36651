"""The walk that the passes share: branches, functions beside `main`, and what it knows of values."""

import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from sparse_ops.transform import SimplifyLayout
from sparse_ops.transform.rewrite import readers_of, same_shape, scalar
from tests.sparse_ops.transform.graphs import graph


@I.ir_module
class Branches:
    @R.function
    def main(x: R.Tensor((4, 6), "float32"), choice: R.Tensor((), "bool")) -> R.Tensor((24,), "float32"):
        R.func_attr({"num_input": 1})
        y: R.Tensor((2, 12), "float32") = R.reshape(x, (2, 12))
        if choice:
            a: R.Tensor((3, 8), "float32") = R.reshape(y, (3, 8))
            z: R.Tensor((24,), "float32") = R.reshape(a, (24,))
        else:
            b: R.Tensor((4, 6), "float32") = R.reshape(y, (4, 6))
            c: R.Tensor((4, 6), "float32") = R.add(b, x)
            z: R.Tensor((24,), "float32") = R.reshape(c, (24,))
        return z

    @R.function
    def other(x: R.Tensor((4, 6), "float32")) -> R.Tensor((4, 6), "float32"):
        y: R.Tensor((4, 6), "float32") = R.reshape(x, (4, 6))
        return y


@I.ir_module
class Simplified:
    @R.function
    def main(x: R.Tensor((4, 6), "float32"), choice: R.Tensor((), "bool")) -> R.Tensor((24,), "float32"):
        R.func_attr({"num_input": 1})
        if choice:
            z: R.Tensor((24,), "float32") = R.reshape(x, (24,))
        else:
            c: R.Tensor((4, 6), "float32") = R.add(x, x)
            z: R.Tensor((24,), "float32") = R.reshape(c, (24,))
        return z

    @R.function
    def other(x: R.Tensor((4, 6), "float32")) -> R.Tensor((4, 6), "float32"):
        return x


def test_branches_and_functions():
    tvm.ir.assert_structural_equal(SimplifyLayout()(Branches), Simplified)


def test_readers_of_values():
    def call(x):
        y = relax.BlockBuilder.current().emit(relax.op.add(x, x))
        return relax.op.multiply(y, x)

    main = graph(call, (3,))["main"]
    (x,), (block,) = main.params, main.body.blocks
    add, multiply = (binding.var for binding in block.bindings)
    assert readers_of(main) == {x: [add, multiply], add: [multiply], multiply: [None]}


def test_scalars_and_shapes():
    assert scalar(relax.const([[2.5]], "float32")) == 2.5
    assert scalar(relax.const([1.0, 1.0])) is None
    n = tvm.tirx.Var("n", "int64")
    assert same_shape([n * 2, 3], [2 * n, 3]) and not same_shape([n, 3], [n, 4]) and not same_shape(None, [n])
