"""`ViewReshapes`: which reshapes become views."""

import tvm
from tvm import relax

from sparse_ops.transform.views import ViewReshapes


def module(make, shape: tuple, *more) -> tvm.IRModule:
    """A function of an input whose named sizes are not known."""
    names: dict[str, tvm.tirx.Var] = {}
    dims = [names.setdefault(dim, tvm.tirx.Var(dim, "int64")) if isinstance(dim, str) else dim for dim in shape]
    x = relax.Var("x", relax.TensorType(dims, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(make(builder, x, [names.get(dim, dim) for dim in more]))
        builder.emit_func_output(out)
    return builder.get()


def views(mod: tvm.IRModule) -> int:
    return ViewReshapes()(mod).script().count("vm.builtin.reshape")


def squared(builder, x, dims):
    return relax.op.multiply(*[builder.emit(relax.op.reshape(x, dims))] * 2)


def test_several_unknown_sizes():
    assert views(module(squared, (1, 3, "h", "w"), 3, 1, "h", "w")) == 1


def test_one_unknown_size_is_left_to_tvm():
    assert views(module(squared, ("n", 6), "n", 2, 3)) == 0


def test_what_is_returned_is_no_view_of_an_input():
    def alone(builder, x, dims):
        return relax.op.reshape(x, dims)

    def among_others(builder, x, dims):
        return relax.Tuple([builder.emit(relax.op.reshape(x, dims)), x])

    for make in (alone, among_others):
        assert views(module(make, (1, 3, "h", "w"), 3, 1, "h", "w")) == 0
