"""The import of users' models: idioms at every number of rows, what is refused and in which words, converters of one's own."""

import functools
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

import sparse_ops.torch.spconv as spconv
from sparse_ops.deploy.from_torch import port_component
from sparse_ops.deploy.importer import CONVERTERS
from sparse_ops.deploy.importer.compare import difference
from sparse_ops.deploy.importer.coverage import table
from sparse_ops.deploy.importer.errors import line_of
from tests.sparse_ops.deploy.idioms import SIDE, THEMES, Idioms
from tests.tolerance import assert_close

ROWS = 61
DOCUMENT = Path(__file__).parents[3] / "docs" / "bridge.md"


@functools.cache
def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """feats, coords in no order, index"""
    rng = np.random.default_rng(0)
    cells = rng.permutation(2 * SIDE**3)[:ROWS]
    coords = np.stack([cells // SIDE**3, cells // SIDE**2 % SIDE, cells // SIDE % SIDE, cells % SIDE], 1).astype("int32")
    feats, index = rng.standard_normal((ROWS, 8)).astype("float32"), rng.integers(0, 2, ROWS)
    return torch.from_numpy(feats), torch.from_numpy(coords), torch.from_numpy(index)


def dynamic(*names: str) -> dict:
    rows = Dim("rows")
    return {name: {0: rows} for name in names}


@functools.cache
def compiled(theme: str):
    return port_component(Idioms(theme), example(), theme, dynamic=dynamic("x", "c", "i"))


@pytest.mark.parametrize("theme", THEMES)
def test_idioms_at_every_number_of_rows(theme):
    model = Idioms(theme).eval()
    for rows in (0, 1, 2, 17, ROWS):
        inputs = [tensor[:rows] for tensor in example()]
        with torch.no_grad():
            every = [list(function(model, *inputs)) for function in model.functions]
        for name, expected, given in zip(THEMES[theme], every, compiled(theme)(*inputs), strict=True):
            assert len(given) == len(expected)
            for place, (mine, theirs) in enumerate(zip(given, expected, strict=True)):
                what = f"{name}[{place}] of {rows} rows"
                assert mine.dtype == theirs.dtype, what
                assert_close(mine, theirs.numpy(), max(ROWS, 9 * 8 * 2), name=what)


class Selected(nn.Module):
    def forward(self, x, i):
        return x[i], x.index_select(0, i.abs())

    def embedded(self, x, i):
        return nn.functional.embedding(i, x), x.gather(0, i[:, None].expand(-1, 8))

    def added(self, x, i):
        return torch.zeros(3, 8).index_add(0, i, x[:2]), torch.zeros(3, 8).scatter(0, i[:, None].expand(-1, 8), x[:2])

    def put(self, x, i):
        y = x.clone()
        y[i, i] = 1.0
        return y


@functools.cache
def selecting():
    x, i = example()[0][:5], torch.tensor([2, 1])
    return port_component(Selected(), dict.fromkeys(("forward", "embedded", "added", "put"), (x, i)), "selected")


@pytest.mark.parametrize(
    ("method", "index"),
    [
        ("forward", [5, 0]),
        ("forward", [0, -6]),
        ("forward", [2**33, 0]),
        ("forward", [0, -(2**40)]),
        ("embedded", [0, 5]),
        ("embedded", [-1, 0]),
        ("added", [3, 0]),
        ("added", [0, -1]),
        ("put", [4, 5]),
        ("put", [-6, 0]),
    ],
)
def test_an_index_out_of_range_is_refused(method, index):
    with pytest.raises(ValueError, match="index: entry"):
        selecting()[method](example()[0][:5], torch.tensor(index))


def test_entries_below_zero_count_from_the_end():
    x, index = example()[0][:5], torch.tensor([-1, 3])
    assert torch.equal(selecting()(x, index)[0], x[index])


class Sized(nn.Module):
    """Sizes that the data decide."""

    def forward(self, x, n):
        count = n.item()
        torch._check(count >= 0)
        return torch.zeros(count, 4), x.new_zeros(count * 2).sum(), torch.ones(1, 2).expand(count, 2)


def test_a_size_that_cannot_be_is_refused():
    component = port_component(Sized(), (torch.zeros(2), torch.tensor([3])), "sized")
    assert component(torch.zeros(2), torch.tensor([0]))[0].shape == (0, 4)
    for size in (-1, -(2**40), 2**45):
        with pytest.raises(ValueError, match="aten::zeros: sizes: expected"):
            component(torch.zeros(2), torch.tensor([size]))


def branching(x):
    return x + 1 if x.sum() > 0 else x


def unsupported(x):
    y = x * 2
    return torch.linalg.svd(y)[1]


def random(x):
    return x + torch.rand_like(x)


def wide(x):
    return nn.functional.linear(x.double(), torch.ones(2, 8).double())


def columns(x):
    return torch.unique(x, dim=0)


def wrapped(x):
    """An object of the user's, as no component returns it."""
    return SimpleNamespace(features=x)


class Extents(nn.Module):
    def forward(self, x, c, batch, side):
        grid = torch.ops.sparse_ops.to_dense(x, c, batch.item(), [SIDE] * 3)
        sites = torch.ops.sparse_ops.strided_map(c, [3] * 3, [2] * 3, [1] * 3, shape=side.tolist())[0]
        return grid, sites, x.max(0).values


def test_extents_from_the_data_and_the_largest_of_nothing():
    x, c, _ = example()
    batch, side = torch.tensor(2), torch.full((3,), SIDE)
    free = dynamic("x", "c") | {"batch": {}, "side": {}}
    component = port_component(Extents(), (x, c, batch, side), "extents", dynamic=free)
    assert component(x, c, torch.tensor(3), side)[0].shape[0] == 3
    for wrong in (0, -5, 2**45):
        with pytest.raises(ValueError, match=r"batch: expected at least 1|to_dense: expected what fits"):
            component(x, c, torch.tensor(wrong), side)
    with pytest.raises(ValueError, match="shape: expected at least 1, given"):
        component(x, c, batch, -side)
    with pytest.raises(ValueError, match="rows beside the one that it takes at least"):
        component(x[:0], c[:0], batch, side)


def grouped(x):
    return F.conv_transpose1d(x.T[None], torch.ones(8, 3, 2), groups=2)


def enlarged(x):
    return F.pad(x[None], (-1, 1), mode="replicate")


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


LINE = r" at .*test_importer\.py:\d+: "


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            branching,
            f"forward cannot be ported: torch.export refuses it{LINE}return x .* if x.sum.*instead: keep a number that",
        ),
        (wrapped, r"torch.export refuses it.*; instead: tensors, in tuples, lists or dicts"),
        (unsupported, f"aten::_linalg_svd{LINE}return self.function.x.: there is no converter for it; instead: numpy, before"),
        (random, f"aten::rand_like{LINE}.*: there are no random numbers in a component; instead: random numbers as an input"),
        (wide, rf"aten::linear{LINE}.*: expected float32, given float64; call \.float\(\) before it"),
        (grouped, rf"aten::convolution{LINE}.*: expected a transposed convolution of one group, given 2 groups"),
        (enlarged, rf"aten::pad{LINE}.*: expected padding of at least 0 for mode 'replicate', given \[-1, 1\]"),
        (columns, f"aten::unique_dim{LINE}.*: expected rows of 1 to 4 integers, given .*; instead: columns of integers"),
    ],
)
def test_what_is_not_covered_names_op_line_and_way_out(function, message):
    with pytest.raises(ValueError, match=message):
        port_component(Calls(function), (example()[0],), "calls")


class Wrong(nn.Module):
    """Its result depends on what torch.export has no eyes for."""

    def forward(self, x):
        return x * (2.0 if torch.compiler.is_exporting() else 3.0), x.sum(0)


class Short(nn.Module):
    def forward(self, x):
        if not torch.compiler.is_exporting() and len(x) < 40:
            raise RuntimeError("too few")
        return x * 2


def test_a_component_that_differs_from_torch_is_refused():
    x = example()[0]
    with pytest.raises(ValueError, match=r"module: forward: with inputs \[61, 8\]: output\.0: differs from torch's: by "):
        port_component(Wrong(), (x,), "wrong")
    unchecked = port_component(Wrong(), (x,), "wrong", check=False)
    assert torch.equal(unchecked(x)[0], x * 2)


def test_a_model_that_takes_no_fewer_rows_is_compared_on_the_example():
    with pytest.warns(UserWarning, match=r"compared with torch on the example only; cut to \[\[30, 8\]\].*too few"):
        port_component(Short(), (example()[0],), "short", dynamic=dynamic("x"))


class Paired(nn.Module):
    """Two rows of b for each of a, behind a convolution."""

    def __init__(self):
        super().__init__()
        self.conv = spconv.SubMConv3d(8, 4, 3)

    def forward(self, x, c, b):
        y = self.conv(spconv.SparseConvTensor(x, c, [SIDE] * 3, 2)).features
        return y.repeat_interleave(2, 0) + b


@pytest.mark.parametrize("rows", [0, 1])
def test_an_example_of_few_rows_serves_any_number(rows):
    model, n = Paired().eval(), Dim("n")
    feats, coords, _ = example()
    b = torch.arange(8.0 * ROWS).reshape(-1, 4)
    dynamic = {"x": {0: n}, "c": (n, None), "b": {0: 2 * n}}
    component = port_component(model, (feats[:rows], coords[:rows], b[: 2 * rows]), "paired", dynamic=dynamic)
    for count in (0, 1, 2, ROWS):
        given = feats[:count], coords[:count], b[: 2 * count]
        with torch.no_grad():
            expected = model(*given)
        assert_close(component(*given), expected.numpy(), 27 * 8 + 1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_difference(precision):
    ones = torch.ones(3)
    assert not difference(ones + 1e-7, ones, precision, 9)
    assert bool(difference(ones + 1e-3, ones, precision, 9)) == (precision == "float32")
    assert "values" in difference(torch.tensor([1, 2]), torch.tensor([1, 3]), precision, 9)
    assert "instead of" in difference(ones.double(), ones, precision, 9)
    assert "NaN" in difference(ones * torch.nan, ones, precision, 9)
    assert not difference(ones * torch.nan, ones * torch.nan, precision, 9)


def ported_example() -> str:
    """The example of docs/bridge.md."""
    return re.search(r"<!-- a test runs this -->\n```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[1]


def test_the_converter_of_the_documentation_runs():
    space: dict = {}
    exec(compile(ported_example(), "docs/bridge.md", "exec"), space)
    x = space["x"]
    assert torch.allclose(space["component"](x), x.clamp(-0.5, 0.5) * 3)


@pytest.mark.parametrize(
    ("converters", "message"),
    [
        ([], "converters: expected functions by the names of ops, given list"),
        ({"my_op": print}, "converters: expected names such as 'my_library::my_op' or 'aten::sort.stable', given 'my_op'"),
        ({"a::b": 1}, "converters: a::b: expected a function of a Context, given int"),
    ],
)
def test_bad_converters(converters, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        port_component(Short(), (example()[0],), "short", converters=converters)


def test_the_table_of_the_documentation_is_that_of_the_converters():
    assert table(CONVERTERS) in DOCUMENT.read_text(), "python -m sparse_ops.deploy.importer.coverage prints it"


def test_the_line_of_a_call_in_one_of_our_layers_is_the_users():
    frames = [(__file__, "forward"), (spconv.conv.__file__, "forward"), (torch.nn.functional.__file__, "linear")]
    stack = "\n".join(f'  File "{file}", line {place}, in {function}' for place, (file, function) in enumerate(frames, 1))
    assert line_of(stack).startswith(f" at {__file__}:1: ")


class Images(nn.Module):
    """What heads of image models are made of, at any size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(6, 6, 3, padding=1, padding_mode="replicate")
        self.point = nn.Conv2d(6, 5, 1, padding_mode="replicate")
        self.up = nn.ConvTranspose2d(6, 5, 2, 2)
        self.line = nn.ConvTranspose1d(6, 4, 3, 2, padding=1, output_padding=1)
        self.volume = nn.ConvTranspose3d(6, 4, (1, 2, 3), (1, 2, 1), bias=False)

    def forward(self, x, like):
        x = x + F.relu(self.conv(x))
        size = (like.shape[0], 2 * like.shape[0])
        padded = [F.pad(x, (2, 1, 0, 1), mode=mode) for mode in ("replicate", "reflect", "circular")]
        return {
            "point": self.point(x),
            "up": F.relu(self.up(x)),
            "line": self.line(x[:, :, 0]),
            "volume": self.volume(x.unsqueeze(2)),
            "resized": F.interpolate(x, size, mode="bilinear"),
            "corners": F.interpolate(x, size, mode="bilinear", align_corners=True),
            **dict(zip(("replicate", "reflect", "circular"), padded, strict=True)),
        }


@pytest.fixture(scope="module")
def images():
    dynamic = {"x": {2: Dim("h"), 3: Dim("w", min=3)}, "like": {0: Dim("n")}}
    model, example = Images().eval(), (torch.zeros(1, 6, 8, 9), torch.zeros(7))
    return model, port_component(model, example, "images", dynamic=dynamic)


@pytest.mark.parametrize("size", [(5, 6, 11), (3, 41, 2), (17, 3, 1)])
def test_images_of_any_size(images, size):
    model, component = images
    height, width, like = size
    x, like = torch.randn(1, 6, height, width), torch.zeros(like)
    with torch.no_grad():
        expected = model(x, like)
    found = component(x, like)
    for name, value in expected.items():
        assert_close(found[name].numpy(), value.numpy(), 6 * 9, dtype="float32", name=name)


def test_images_too_small_for_their_padding_are_refused(images):
    _, component = images
    with pytest.raises(ValueError, match=r"axis 3 of what is padded by 2 in mode 'reflect': expected at least 3, given \[2\]"):
        component(torch.zeros(1, 6, 4, 2), torch.zeros(3))


def test_builtins_are_python_s_again():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled("numbers")
    assert "len" not in vars(__import__("tests.sparse_ops.deploy.idioms", fromlist=["_"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic": "abc"}, "dynamic: expected axes by the names of forward's arguments x, or a tuple of 1, given 'abc'"),
        ({"dynamic": ({0: Dim("n")}, None)}, "or a tuple of 1, given ("),
        ({"dynamic": {"y": {0: Dim("n")}}}, "dynamic: expected axes by the names of forward's arguments x"),
        ({"dynamic": {"x": {5: Dim("n")}}}, "dynamic: x: expected sizes by axis, 0 to 1, or 2 of them, given {5"),
        ({"dynamic": {"x": [Dim("n")]}}, "dynamic: x: expected sizes by axis, 0 to 1, or 2 of them, given ["),
        ({"check": "yes"}, "check: expected True or False, given 'yes'"),
        ({"check": None}, "check: expected True or False, given None"),
    ],
)
def test_bad_options_are_refused_in_words(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        port_component(Calls(torch.relu), (torch.ones(3, 4),), "calls", **options)


def test_a_converter_that_returns_nothing_is_named():
    with pytest.raises(ValueError, match=r"aten::relu.*: expected a Relax expression of its converter, given NoneType"):
        port_component(Calls(torch.relu), (torch.ones(3, 4),), "calls", converters={"aten::relu": lambda context: None})


def part(x):
    return x[: x[:, 0].sum().long().item()] * 2, x[x[:, 1].sum().long().item() :] * 3


def test_bounds_from_the_data_count_from_the_end_if_they_are_negative():
    x = torch.zeros(5, 4)
    x[0, :2] = 2
    component = port_component(Calls(part), (x,), "part", dynamic={"x": {0: Dim("n")}})
    for first, second in ((3, 1), (0, 0), (-2, -3), (-5, -5), (-9, 9), (9, -9)):
        x[0, :2] = torch.tensor([first, second])
        for mine, theirs in zip(component(x), part(x), strict=True):
            assert torch.equal(mine, theirs)
