"""Names, signatures and attributes of the drop-in against spconv's own."""

import importlib
import inspect
import pkgutil

import pytest

torch = pytest.importorskip("torch")

import sparse_ops.torch.spconv as ours  # noqa: E402
from sparse_ops.torch.spconv import differences  # noqa: E402
from tests.sparse_ops.torch.clouds import tensor  # noqa: E402

MODULES = ("core", "conv", "pool", "modules", "tables", "identity", "functional", "utils", "ops")


@pytest.fixture(scope="module")
def real():
    return pytest.importorskip("spconv.pytorch")


def pairs(real):
    """(name, spconv's, ours or None) of every public class and function, and of those that `spconv.pytorch` itself has."""
    for module in ("", *MODULES):
        theirs = importlib.import_module(f"spconv.pytorch.{module}".rstrip("."))
        mine = importlib.import_module(f"sparse_ops.torch.spconv.{module}".rstrip("."))
        for name, value in vars(theirs).items():
            home = getattr(value, "__module__", "")
            of_package = not module and isinstance(home, str) and home.startswith("spconv.pytorch")
            if not name.startswith("_") and callable(value) and (home == theirs.__name__ or of_package):
                yield f"{module}.{name}".lstrip("."), value, getattr(mine, name, None)


def signature(function) -> list[tuple]:
    """Names, kinds and defaults; what is of an enumeration by its name."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, getattr(p.default, "name", p.default)) for p in parameters]


def test_every_name_is_there_or_listed_as_left_out(real):
    modules = {module.name for module in pkgutil.iter_modules(real.__path__)}
    missing = {name for name, _, mine in pairs(real) if mine is None}
    missing |= {name for name in modules if not hasattr(ours, name)}
    assert missing == set(differences.LEFT_OUT)


def test_every_top_level_name_of_spconv_is_ours(real):
    classes = {name for name, value in vars(real).items() if isinstance(value, type) and value.__module__.startswith("spconv")}
    assert len(classes) > 30
    assert classes <= set(ours.__all__)


def test_signatures_are_equal(real):
    compared = 0
    for name, theirs, mine in pairs(real):
        if mine is None or (not inspect.isclass(theirs) and not inspect.isfunction(theirs)):
            continue
        if (
            inspect.isclass(theirs)
            and "__init__" in dir(theirs)
            and not issubclass(theirs, importlib.import_module("enum").Enum)
        ):
            assert signature(theirs.__init__) == signature(mine.__init__), name
            compared += 1
        elif inspect.isfunction(theirs):
            assert signature(theirs) == signature(mine), name
            compared += 1
    assert compared > 60


def test_methods_are_equal(real):
    special = ("__add__", "__iadd__", "__radd__", "__getitem__", "__len__", "__call__")
    compared = 0
    for name, theirs, mine in pairs(real):
        if mine is None or not inspect.isclass(theirs):
            continue
        for method, function in vars(theirs).items():
            if inspect.isfunction(function) and (method in special or not method.startswith("_")):
                assert signature(function) == signature(getattr(mine, method)), f"{name}.{method}"
                compared += 1
    assert compared > 30


def test_enumerations_are_equal(real):
    assert {e.name: e.value for e in real.ConvAlgo} == {e.name: e.value for e in ours.ConvAlgo}
    theirs = pytest.importorskip("cumm.tensorview").gemm.Activation
    assert {name: int(value) for name, value in theirs.__members__.items()} == {e.name: e.value for e in ours.Activation}


def layers(spconv) -> list:
    return [
        spconv.SubMConv3d(3, 4, 3, indice_key="a"),
        spconv.SparseConv2d(3, 4, (3, 1), 2, 1, record_voxel_count=True),
        spconv.SparseConvTranspose1d(3, 4, 3, bias=False, name="up"),
        spconv.SparseInverseConv3d(3, 4, 3, "a"),
        spconv.SubMConv3d(3, 4, 1),
        spconv.SparseMaxPool3d(2),
        spconv.SparseAvgPool2d(2, 1),
        spconv.SparseGlobalMaxPool(),
        spconv.SparseGlobalAvgPool(),
        spconv.SparseSequential(spconv.SubMConv3d(3, 4, 3), torch.nn.ReLU()),
        spconv.SparseBatchNorm(3),
        spconv.ToDense(),
        spconv.JoinTable(),
    ]


def test_layers_have_the_attributes_weights_and_states_of_spconv(real):
    made = []
    for spconv in (real, ours):
        torch.manual_seed(4)
        made.append(layers(spconv))
    for theirs, mine in zip(*made, strict=True):
        assert set(vars(theirs)) - set(vars(mine)) == set(), type(mine)
        for name, value in vars(theirs).items():
            if isinstance(value, int | float | str | list | tuple | None):
                assert getattr(mine, name) == value, name
        assert list(theirs.state_dict()) == list(mine.state_dict())
        for name, value in theirs.state_dict().items():
            assert torch.equal(value, mine.state_dict()[name]), name  # the same draws in the same order
        mine.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(mine.state_dict())


def test_tensors_have_the_attributes_of_spconv(real):
    theirs, mine = (tensor(spconv, 5) for spconv in (real, ours))
    assert set(vars(theirs)) - set(vars(mine)) == set()
    assert theirs.spatial_size == mine.spatial_size
    assert repr(theirs) == repr(mine)


def test_a_model_without_spconv_imports_none():
    import subprocess
    import sys

    code = "import sys, sparse_ops.torch, sparse_ops.torch.spconv; assert not {'spconv', 'cumm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
