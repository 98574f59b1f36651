"""`SizesFirst`: what reads a size stands behind the `match_cast` that it comes from; all else stays where it is."""

import pytest
import tvm
from tvm import relax

from sparse_ops.transform.sizes_first import SizesFirst


def function(places: list[int]) -> tvm.IRModule:
    """Five bindings in the given order, of which 3 reads the size that 2 makes, in its shape only."""
    x = relax.Var("x", relax.TensorType([2], "int64"))
    size = tvm.tirx.Var("size", "int64")
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            shape = builder.emit(relax.op.tensor_to_shape(relax.op.add(x, x)))
            builder.match_cast(shape, relax.ShapeType([size, 3]))
            ones = builder.emit(relax.op.ones(relax.ShapeExpr([size, 3]), "float32"))
            out = builder.emit_output(relax.op.add(ones, ones))
        builder.emit_func_output(out)
    made = builder.get()["main"]
    in_order = bindings(builder.get())
    body = relax.SeqExpr([relax.DataflowBlock([in_order[place] for place in places])], made.body.body)
    return tvm.IRModule({"main": relax.Function(made.params, body, made.ret_ty)})


def bindings(mod: tvm.IRModule) -> list[relax.Binding]:
    return list(mod["main"].body.blocks[0].bindings)


@pytest.mark.parametrize("places", [[0, 1, 3, 2, 4], [3, 0, 1, 2, 4], [3, 4, 0, 1, 2]])
def test_a_size_is_made_before_it_is_read(places):
    found = SizesFirst()(function(places))
    relax.analysis.well_formed(found)  # raises where it is not
    kinds = [binding.value.op.name if isinstance(binding.value, relax.Call) else "match_cast" for binding in bindings(found)]
    assert kinds.index("match_cast") < kinds.index("relax.ones")
    assert len(kinds) == 5


def test_what_is_in_order_stays():
    mod = function([0, 1, 2, 3, 4])
    assert SizesFirst()(mod)["main"].same_as(mod["main"])
