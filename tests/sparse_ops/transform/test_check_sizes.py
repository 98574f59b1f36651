"""`CheckSizes`: what a compiled function says of arguments of another size, also once it is saved and loaded."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.frontend.nn import spec

from sparse_ops import nn
from sparse_ops.build import build, pack_params, unchecked
from sparse_ops.transform.check_sizes import CheckSizes
from tests.sparse_ops.transform.graphs import graph


class Network(nn.Module):
    def __init__(self):
        self.norm = nn.LayerNorm(8)

    def forward(self, feats, coords, more, scale):
        x = nn.SymbolicSparseTensor.of(feats, coords, scale.shape[0])
        return self.norm(x, scale, scale).feats, more + more


INPUTS = {
    "feats": spec.Tensor(["n", 8], "float32"),
    "coords": spec.Tensor(["n", 4], "int32"),
    "more": spec.Tensor(["m", "n"], "float32"),
    "scale": spec.Tensor(["b", 8], "float32"),
}
FITTING = {"feats": (3, 8), "coords": (3, 4), "more": (5, 3), "scale": (2, 8)}


def arguments(**shapes):
    return [
        tvm.runtime.tensor(np.zeros(shape, "int32" if name == "coords" else "float32"))
        for name, shape in (FITTING | shapes).items()
    ]


@pytest.fixture(scope="module", params=["in memory", "saved"])
def run(request, tmp_path_factory):
    module, parameters = Network().export_tvm({"forward": INPUTS})
    code = build(module, lift_params=True)
    if request.param == "saved":
        file = tmp_path_factory.mktemp("library") / "code.so"
        code.export_library(str(file))
        code = tvm.runtime.load_module(str(file))
    machine = relax.VirtualMachine(code, tvm.cpu())
    weights = [tvm.runtime.tensor(np.ones(8, "float32")) for _ in parameters]
    packed = pack_params(machine, "forward", weights.__getitem__)
    return lambda **shapes: machine["forward"](*arguments(**shapes), *packed)


def test_sizes_that_fit(run):
    assert [tuple(out.shape) for out in run()] == [(3, 8), (5, 3)]
    shapes = {"feats": (0, 8), "coords": (0, 4), "more": (5, 0)}
    assert [tuple(out.shape) for out in run(**shapes)] == [(0, 8), (5, 0)]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"coords": (4, 4)}, "^coords: expected 3 rows, as feats has, given 4$"),
        ({"coords": (0, 4)}, "^coords: expected 3 rows, as feats has, given 0$"),
        ({"feats": (2, 8)}, "^coords: expected 2 rows, as feats has, given 3$"),
        ({"feats": (3, 7)}, "^feats: expected 8 along axis 1, given 7$"),
        ({"coords": (3, 5)}, "^coords: expected 4 along axis 1, given 5$"),
        ({"more": (5, 4)}, "^more: expected 3 along axis 1, as feats has, given 4$"),
        ({"scale": (2, 9)}, "^scale: expected 8 along axis 1, given 9$"),
    ],
)
def test_sizes_that_do_not_fit(run, shapes, message):
    with pytest.raises(ValueError, match=message):
        run(**shapes)


def lowered(*shapes):
    """A module as the pass finds it: its calls allocate and call kernels."""
    passes = [relax.transform.LegalizeOps(), relax.transform.ToNonDataflow(), relax.transform.CallTIRRewrite()]
    return tvm.transform.Sequential(passes)(graph(relax.op.add, *shapes))


def test_before_and_after():
    before = lowered(("n", 8), ("n", 8))
    after = CheckSizes()(before)
    assert "main_check_sizes" in {gv.name_hint for gv in after.get_global_vars()}
    first, second = (param.ty.shape.values for param in after["main"].params)
    assert len({str(dim) for dim in (*first, *second)}) == 4  # none is a number, and none occurs twice
    again = [str(binding.var.ty) for binding in after["main"].body.blocks[0].bindings if isinstance(binding, relax.MatchCast)]
    assert again == [str(param.ty) for param in before["main"].params]
    with unchecked():
        assert "main_check_sizes" not in {gv.name_hint for gv in CheckSizes()(before).get_global_vars()}


def test_nothing_is_added_where_nothing_can_differ():
    alone = tvm.transform.Sequential([relax.transform.LegalizeOps(), relax.transform.ToNonDataflow()])(
        graph(relax.op.exp, ("n", "c"))
    )
    assert CheckSizes()(alone).script() == alone.script()
