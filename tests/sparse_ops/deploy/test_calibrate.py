"""`calibrate`: which channels it finds, what that does to errors, and every way in which it can be asked wrongly."""

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import nn
from torch.export import Dim
from tvm.relax.frontend.nn import spec

from sparse_ops import nn as sparse_nn
from sparse_ops.deploy import Component, calibrate, component_from_nn, from_torch, port_component
from sparse_ops.deploy.calibrate import APART, Largest
from sparse_ops.deploy.component import LIBRARY
from sparse_ops.deploy.importer.compare import SHARES, difference
from tir_kernels.cpu.isa import AVX512, PORTABLE, forced_isa

ISA = replace(AVX512, integer=("vpdpbusd",), emulate_integer=True)
WIDTH, HIDDEN, ROWS = 256, 512, 96
OUTLIERS = [3, 40, 77, 110, 151, 200, 230, 255]
FIRST, SECOND = "block.0.weight", "block.2.weight"  # the layers that have integers


@pytest.fixture(autouse=True)
def on_integers():
    """On any machine."""
    with forced_isa(ISA):
        yield


class Network(nn.Module):
    """A norm and two layers behind a residual, so that the second one makes the result and has integers still."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.block = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))

    def forward(self, x, residual):
        return residual + self.block(self.norm(x))

    def first(self, x, residual):
        return residual + self.block[0](self.norm(x))


def example(seed=1, rows=ROWS):
    torch.manual_seed(seed)
    x = torch.randn(rows, WIDTH)
    return {"forward": (x, torch.zeros(rows, WIDTH)), "first": (x, torch.zeros(rows, HIDDEN))}


@cache
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval().requires_grad_(False)


def with_outliers(largest: float) -> Network:
    """The same function, but that some channels of the first layer's input are up to `largest` times as large, and weights as
    much smaller."""
    found = copy.deepcopy(network())
    factors = torch.ones(WIDTH)
    factors[OUTLIERS] = torch.linspace(largest / 7, largest, len(OUTLIERS)) * torch.tensor([1.0, -1.0] * 4)
    found.norm.weight.mul_(factors)
    found.norm.bias.mul_(factors)
    found.block[0].weight.div_(factors)
    return found


def state(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in module.state_dict().items()}


@cache
def plain() -> Component:
    with forced_isa(ISA):
        rows = {0: Dim("rows", min=1)}
        dynamic = {"forward": {"x": rows, "residual": rows}}
        return port_component(network(), example(), "network", precision="int8", dynamic=dynamic)  # and compares


def made(largest: float) -> tuple[Component, dict[str, np.ndarray]]:
    """A component with outliers, and its weights."""
    weights = state(with_outliers(largest))
    return plain().with_parameters(weights), weights


def apart(component: Component) -> dict[str, tuple[int, ...]]:
    specs = {spec.name.partition("(")[2].removesuffix(")"): spec for spec in component.manifest.packed if spec.is_quantized}
    return {name: spec.apart for name, spec in specs.items()}


def error(component: Component, function: str, given) -> float:
    """Relative L2 of what rows differ by, against float64."""
    with torch.no_grad():
        expected = getattr(copy.deepcopy(network()).double(), function)(*(x.double() for x in given)).numpy()
    found = component[function](*given).double().numpy()
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected - expected.mean(0)))


def bound(*depths: int) -> float:
    """Of layers of these many channels, one after the other.

    The largest of K normal values is sqrt(2 ln 2K) of their deviation, at most, in the mean; a step is a 127th of that, and
    rounds by as much as a uniform error within it, step / sqrt(12), in x and in the weight.
    """
    return float(np.sqrt(sum(2 * 2 * np.log(2 * depth) / 127**2 / 12 for depth in depths)))


def test_which_layers_have_integers():
    assert apart(plain()) == {FIRST: (), SECOND: ()}
    assert {spec.runs_in for spec in plain().manifest.packed} == {"", "int8"}


@pytest.mark.parametrize("largest", [1.0, 100.0, 700.0])
def test_errors_of_one_layer(largest):
    """1.2% whatever stands out; without calibration what stands out takes the steps of the rest."""
    component, weights = made(largest)
    given, others = example()["first"], example(seed=2)
    calibrated = calibrate(component, {"first": [others["first"]]}, weights)
    assert bound(WIDTH) < 0.012
    assert error(calibrated, "first", given) < bound(WIDTH)
    if largest > 1:
        assert error(component, "first", given) > 2 * bound(WIDTH)
        assert apart(calibrated)[FIRST] == tuple(OUTLIERS)
    assert apart(calibrated)[SECOND] == ()  # which "first" does not reach


def test_errors_of_two_layers():
    """The second one reads what a GELU makes: its few large values are not those of some channels."""
    component, weights = made(700.0)
    given, others = example(), example(seed=2)
    calibrated = calibrate(component, [others["forward"]], weights)
    assert apart(calibrated)[FIRST] == tuple(OUTLIERS)
    assert len(apart(calibrated)[SECOND]) == APART
    assert (
        error(calibrated, "forward", given["forward"]) < SHARES["int8"] * 2**0.5 < error(component, "forward", given["forward"])
    )


def test_channels_are_those_of_the_largest_inputs():
    """Over all calls, by name or by position, and all rows. Each of eight stands out in one row of one call."""
    calls = [example(seed=seed, rows=rows)["forward"] for seed, rows in ((3, 5), (4, 0), (5, 3))]
    places = list(range(7, HIDDEN, 64))
    module = copy.deepcopy(network())
    rows = torch.cat([F.layer_norm(x, (WIDTH,)) for x, _ in calls])
    module.block[0].weight[places] = rows[:8] / 16  # of squared norm 256: 16 in that row, and about 1 in the others
    found = calibrate(plain().with_parameters(weights := state(module)), [calls[0]], weights)
    assert set(places[:5]) < set(apart(found)[SECOND])
    by_name = {"x": calls[1][0], "residual": calls[1][1]}
    found = calibrate(plain().with_parameters(weights), [calls[0], by_name, calls[2]], weights)
    assert apart(found)[SECOND] == tuple(places)


def test_saved_loaded_and_calibrated_again(tmp_path):
    component, weights = made(300.0)
    given = example()["forward"]
    calibrated = calibrate(component, [given], weights)
    folder, other = component.save(tmp_path / "plain"), calibrated.save(tmp_path / "calibrated")
    assert (folder / LIBRARY).read_bytes() == (other / LIBRARY).read_bytes()
    loaded = Component.load(other)
    assert loaded.manifest == calibrated.manifest
    again = calibrate(loaded, [given], weights)
    assert again.manifest == calibrated.manifest
    for component in (loaded, again):
        np.testing.assert_array_equal(component(*given), calibrated(*given))
    assert not np.array_equal(plain()(*given), calibrated(*given))


def test_other_weights_are_not_calibrated():
    component, weights = made(300.0)
    calibrated = calibrate(component, [example()["forward"]], weights)
    fresh = calibrated.with_parameters(weights)
    assert fresh.manifest == component.manifest
    np.testing.assert_array_equal(fresh(*example()["forward"]), component(*example()["forward"]))


def test_nothing_is_noted_afterwards_and_the_component_is_as_before():
    component, weights = made(300.0)
    given = example()["forward"]
    before = component(*given).numpy().copy()
    calibrate(component, [given], weights)
    np.testing.assert_array_equal(component(*given), before)
    assert apart(component) == {FIRST: (), SECOND: ()}


def test_of_equal_channels_the_lowest_and_nothing_of_what_is_not_finite():
    found = Largest()
    x = np.ones((3, 20), np.float32)
    x[0, 12], x[1, 5], x[2, 17] = -3, np.nan, np.inf
    found.note(0, x)
    found.note(0, np.zeros((0, 20), np.float32))
    found.note(1, np.zeros((0, 20), np.float32))
    assert found.channels(0) == [0, 1, 2, 3, 4, 5, 6, 12]
    found.note(0, np.full((1, 20), 2, np.float32) * (np.arange(20) == 19))
    assert found.channels(0) == [0, 1, 2, 3, 4, 5, 12, 19]
    assert set(found.by_layer) == {0}


def test_rows_that_are_not_finite_stay_so():
    component, weights = made(300.0)
    x, residual = example()["forward"]
    x[7, 3] = torch.nan
    calibrated = calibrate(component, [(x, residual)], weights)
    assert apart(calibrated)[FIRST] == tuple(OUTLIERS)
    out = calibrated(x, residual)
    assert out[7].isnan().all() and out[:7].isfinite().all() and out[8:].isfinite().all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "inputs: expected at least one call, given none"),
        ({"forward": []}, "inputs: expected at least one call, given none"),
        (3, "inputs: expected a list of calls of forward, given int"),
        ([torch.zeros(1, WIDTH)], "inputs: expected a tuple of arguments of forward, or a dict by name, given Tensor"),
        ({"back": [()]}, "function: expected one of forward, first, given 'back'"),
        (
            [{3: torch.zeros(ROWS, WIDTH)}],
            "inputs: expected a tuple of arguments of forward, or a dict by name, given a dict of 3",
        ),
        ([(torch.zeros(ROWS, WIDTH),)], "forward: expected the arguments x, residual, given 1 by position"),
        ([(torch.zeros(ROWS, 3), torch.zeros(ROWS, WIDTH))], r"x: expected float32 \[rows, 256\], given"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(ValueError, match=message):
        calibrate(plain(), inputs, state(network()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({FIRST: None}, f"weights: {FIRST}: missing"),
        ({"other": np.zeros(3, np.float32)}, "weights: other: not a parameter"),
        ({FIRST: np.zeros((2, 2), np.float32)}, f"weights: {FIRST}: expected float32"),
        ({FIRST: np.ones((HIDDEN, WIDTH), np.float32)}, rf"weights: expected those .* made with, given others for .*{FIRST}"),
    ],
)
def test_weights_that_do_not_fit(change, message):
    weights = {name: value for name, value in (state(network()) | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        calibrate(plain(), [example()["forward"]], weights)


def test_a_component_of_floats():
    with (
        forced_isa(PORTABLE),
        pytest.warns(UserWarning, match="precision: small gains nothing by it on this CPU: int8 is float32"),
    ):
        small = port_component(nn.Linear(4, 4), (torch.zeros(1, 4),), "small", precision="int8")
    message = r"component: expected one with layers of integer products, given 'small' of .* int8: no layer of it gains"
    with pytest.raises(ValueError, match=message):
        calibrate(small, [(torch.zeros(1, 4),)], {})


@pytest.mark.parametrize("component", [None, "artifacts/classifier", nn.Linear(4, 4)])
def test_what_is_no_component(component):
    with pytest.raises(ValueError, match=f"component: expected a Component, given {type(component).__name__}"):
        calibrate(component, [(torch.zeros(1, 4),)], {})


def test_inputs_without_a_finite_value_tell_no_channels():
    x, residual = example()["forward"]
    calibrated = calibrate(plain(), [(x * torch.nan, residual)], state(network()))
    assert apart(calibrated) == {FIRST: (), SECOND: ()}


def test_the_comparison_with_torch_is_no_obstacle_to_calibration(monkeypatch):
    """Channels that stand out take more than rounding explains, until they are apart."""
    module, given = with_outliers(700.0), example()["forward"]
    with pytest.warns(UserWarning, match=r"differs from torch's: by .* is rounding; calibrated by this example it does not"):
        component = port_component(module, given, "outliers", precision="int8")
    assert apart(component) == {FIRST: (), SECOND: ()}
    monkeypatch.setattr(from_torch, "calibrate", lambda component, inputs, weights: component)
    with pytest.raises(ValueError, match=r"module: forward, calibrated: .* differs from torch's"):
        port_component(module, given, "outliers", precision="int8")


def test_another_target_that_gains_nothing_is_named():
    target = tvm.target.Target({"kind": "llvm", "mcpu": "haswell"})
    with forced_isa(PORTABLE), pytest.warns(UserWarning, match="gains nothing by it on the target .*haswell.* float32 there"):
        port_component(nn.Linear(4, 4), (torch.zeros(1, 4),), "small", precision="int8", target=target)


def test_a_wrong_precision_is_said_before_the_module_is_looked_at():
    with pytest.raises(ValueError, match=r"port_component: precision: expected one of .*'int7', given 'int4'"):
        port_component(nn.Linear(4, 4), 3, "small", precision="int4")


def test_a_network_of_small_layers_says_that_it_stays_in_floats():
    with pytest.warns(UserWarning, match="precision: small has no layers that gain by it: int8 is float32 here"):
        port_component(nn.Linear(4, 4), (torch.zeros(1, 4),), "small", precision="int8")


@pytest.mark.parametrize("precision", SHARES)
def test_the_comparison_with_torch_allows_a_share(precision):
    expected = torch.randn(50, 20) + 100  # what all rows have in common does not count
    noise = torch.randn(50, 20)
    noise *= (expected - expected.mean(0)).norm() / noise.norm()
    for layers in (1, 4):
        allowed = SHARES[precision] * layers**0.5
        assert not difference(expected + 0.9 * allowed * noise, expected, precision, 9, layers)
        assert "relative L2" in difference(expected + 1.1 * allowed * noise, expected, precision, 9, layers)
    assert not difference(torch.zeros(3), torch.zeros(3), precision, 9)
    assert difference(torch.ones(3), torch.zeros(3), precision, 9)
    assert not difference(torch.tensor(1.01), torch.tensor(1.0), precision, 9)


class Layer(sparse_nn.Module):
    def __init__(self):
        self.norm = sparse_nn.LayerNorm(WIDTH)
        self.linear = sparse_nn.Linear(WIDTH, WIDTH)

    def forward(self, x, residual):
        return self.linear(self.norm(x), residual)


def test_layers_that_share_code_have_channels_of_their_own():
    """In bfloat16, as on a CPU that has its dot product: 0.2% more."""
    random, model = np.random.default_rng(0), Layer()
    weights, copied = {}, {}
    for name, parameter in model.named_parameters():
        copied[name] = f"other.{name}"
        for key in (name, copied[name]):
            weights[key] = random.standard_normal([int(n) for n in parameter.shape], np.float32) / WIDTH**0.5
    channels = {"": tuple(range(8)), "other.": tuple(range(200, 208))}
    for prefix, outliers in channels.items():
        weights[prefix + "norm.weight"][:] = 1
        weights[prefix + "norm.weight"][list(outliers)] = 300
        weights[prefix + "linear.weight"][:, list(outliers)] /= 300
    types = [spec.Tensor(["n", WIDTH], "float32")] * 2
    functions = {"forward": spec.MethodSpec(model.forward, ["x", "residual"], types, "plain", "none")}
    with forced_isa(replace(ISA, bf16_dot=True, emulate_dot=True)):
        made = component_from_nn(model, functions, "layer", weights, precision="int8", copies={"forward": [copied]})
        given = random.standard_normal((64, WIDTH), np.float32), np.zeros((64, WIDTH), np.float32)
        found = calibrate(made, {"forward": [given], "forward.1": [given]}, weights)
    assert [spec.apart for spec in found.manifest.packed if spec.is_quantized] == list(channels.values())
    for name, prefix in (("forward", ""), ("forward.1", "other.")):
        x = given[0].astype(np.float64)
        x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
        x = x * weights[prefix + "norm.weight"] + weights[prefix + "norm.bias"]
        expected = x @ weights[prefix + "linear.weight"].T.astype(np.float64) + weights[prefix + "linear.bias"]
        off = found[name](*given) - expected
        assert np.linalg.norm(off) < (bound(WIDTH) + 0.002) * np.linalg.norm(expected - expected.mean(0))
