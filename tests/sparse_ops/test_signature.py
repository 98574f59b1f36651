"""Signatures of ops: what derives from them, for all ops and on a made-up one."""

import inspect

import pytest
import tvm
from tvm import relax

import sparse_ops.op as ops
from sparse_ops.op.register import OPS, op_of
from sparse_ops.op.signature import (
    GIVEN,
    Bound,
    Epilogue,
    Kind,
    Signature,
    Table,
    bind,
    features,
    index,
    parameter,
    weight,
)

CONSTRUCTORS = {**{name: getattr(ops, name) for name in ops.__all__}, "unique": ops.downsample}
N, C = tvm.tirx.Var("n", "int64"), 5


def variable(name: str, *shape, dtype: str = "float32") -> relax.Var:
    return relax.Var(name, relax.TensorType(list(shape), dtype))


def linear(**more) -> relax.Call:
    return ops.linear(variable("x", N, C), variable("w", 7, C), **more)


@pytest.mark.parametrize("name", sorted(OPS))
def test_a_constructor_takes_what_the_signature_names(name):
    """So that an op's arguments stand in one place: a torch op, or an eager call, can be made of the signature."""
    signature = OPS[name].signature
    parameters = inspect.signature(CONSTRUCTORS[name]).parameters
    missing = set(signature.names) - parameters.keys()
    assert not missing
    required = [p.name for p in parameters.values() if p.default is inspect.Parameter.empty and p.name in signature.names]
    assert required == [argument.name for argument in signature.arguments if not argument.optional]
    optional = [p.name for p in parameters.values() if p.default is not inspect.Parameter.empty and p.name in signature.names]
    assert sorted(optional) == sorted(signature.optional)
    # options of the constructor, or what they make
    made = {"transposed", "stride", "padding", "activation", "name", "groups", "infer"}
    assert set(signature.options) <= parameters.keys() | made


def test_every_op_has_one():
    assert OPS.keys() == CONSTRUCTORS.keys() - {"downsample"}  # which makes calls of `unique`
    assert all(op.signature.name == name for name, op in OPS.items())


@pytest.mark.parametrize("name", sorted(OPS))
def test_kinds_say_what_arguments_are(name):
    for argument in OPS[name].signature.arguments:
        if argument.epilogue is not None:
            assert argument.optional and argument.kind in (Kind.PARAMETER, Kind.FEATURES)
        if argument.kind is Kind.PARAMETER:
            assert argument.dtype == ("float32",)
        if argument.kind in (Kind.COORDINATES, Kind.INDEX, Kind.OFFSETS):
            assert argument.dtype == ("int32",)


def test_arguments_are_found_by_name_wherever_they_stand():
    bias, residual = variable("b", 7), variable("r", N, 7)
    call = linear(residual=residual)
    op = op_of(call)
    assert op is OPS["linear"] and list(call.attrs[GIVEN]) == ["residual"]
    assert op.signature.arguments_of(call)["residual"].same_as(residual)
    more = op.with_more(call, {"bias": bias}, {"activation": "relu"})
    assert op.signature.present(more) == ["x", "weight", "bias", "residual"]
    assert op.signature.arguments_of(more)["residual"].same_as(residual)
    assert op.signature.options_of(more) == {"activation": "relu", "out_dtype": None, "products": "float"}
    assert op.signature.narrow_arguments(more) == {"x", "weight", "residual"}
    assert op_of(relax.op.add(bias, bias)) is None


def test_tables_have_a_row_to_each_batch_element_only_with_an_index():
    gate, rows = variable("g", 3, 7), variable("i", N, dtype="int32")
    bound = bind(OPS["linear"].signature, linear(gate=gate, batch_index=rows))
    assert isinstance(bound, Bound) and int(bound.dims["batch"]) == 3
    with pytest.raises(ValueError, match=r"sparse_ops\.linear: gate: expected \[1, 7\] of float32, given"):
        bind(OPS["linear"].signature, linear(gate=gate))


def test_wrong_names_are_refused():
    x = variable("x", N, C)
    with pytest.raises(ValueError, match=r"sparse_ops\.softmax: has no y"):
        OPS["softmax"].make({"x": x, "y": x}, {})
    with pytest.raises(ValueError, match=r"sparse_ops\.softmax: has no axis"):
        OPS["softmax"].make({"x": x}, {"axis": 1})


def test_optional_arguments_come_last():
    with pytest.raises(ValueError, match="made_up: expected optional arguments behind the others"):
        Signature("made_up", (features("x", "n", "c"), parameter("bias", "c", optional=True), weight("weight", "d", "c")))


def test_a_signature_knows_dimensions_by_name():
    signature = Signature(
        "made_up",
        (
            features("x", "n", "c"),
            parameter("table", Table("b", "rows"), "c", optional=True, epilogue=(0, Epilogue.ADD)),
            index("rows", "n", optional=True),
        ),
        known=("c",),
        result=("n", "c"),
    )
    attributes = tvm.ir.make_node("ir.DictAttrs", **{GIVEN: ["table"]})
    call = relax.Call(tvm.ir.Op.get("relax.sparse_ops.linear"), [variable("x", N, C), variable("t", 1, C)], attributes)
    bound = bind(signature, call)
    assert bound.has("table") and not bound.has("rows") and bound["rows"] is None
    assert bound.dims["c"] == C and bound.shape(signature.result)[1] == C
