"""The sparse-structure flow: PyTorch module against upstream's results, compiled component against the module, its savings, the
sampler, bad input.

The golden case `ss_flow` compares the compiled component with upstream's results.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import prod

import numpy as np
import pytest
import torch

from sam3d_tvm.models.example_torch import seeded
from sam3d_tvm.models.structure_flow import PRESETS, SHAPE, StructureFlow, StructureFlowConfig, preset
from sam3d_tvm.models.structure_flow.network_torch import METHODS, StructureFlowModel, example
from sam3d_tvm.multi_view import mean
from sam3d_tvm.sampler import Guidance, sample_shortcut
from tests import DATA
from tests.golden import case_ss_flow
from tests.golden.runner import check_tensors, read
from tests.sam3d_tvm.tiny import normal
from tests.tolerance import assert_close

# Compiles sooner than "tiny"; tokens go in another order than latents, and one has several.
CONFIG = StructureFlowConfig(
    model_channels=16,
    cond_channels=16,
    num_blocks=2,
    num_heads=2,
    mlp_ratio=2,
    latent_mapping={"scale": (4, 1), "shape": (4, 9), "rotation": (4, 2)},
    latent_share_transformer={"pose": ("rotation", "scale")},
)
TOKENS = 5
COND = normal(1, 2, TOKENS, CONFIG.cond_channels)
LATENTS = {
    name: normal(seed, 2, latent.token_len, latent.in_channels)
    for seed, (name, latent) in enumerate(CONFIG.latent_mapping.items(), start=2)
}
T = np.float32([300, 700])


@functools.cache
def module() -> StructureFlowModel:
    return seeded(lambda: StructureFlowModel(CONFIG))


@pytest.fixture(scope="module")
def flow() -> StructureFlow:
    return StructureFlow(case_ss_flow.compiled(module()), CONFIG)


def of_element(b: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array[b : b + 1] for name, array in arrays.items()}


def torch_velocity(latents: dict[str, np.ndarray], t: np.ndarray, d: float | None, cond: np.ndarray) -> dict[str, np.ndarray]:
    """What upstream's straight computation gives."""
    given = {name: torch.from_numpy(array) for name, array in latents.items()}
    t, cond = torch.from_numpy(t), torch.from_numpy(cond)
    with torch.inference_mode():
        found = module()(given, t, None if d is None else torch.full_like(t, d), cond)
    return {name: array.numpy() for name, array in found.items()}


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def assert_velocities_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], steps: float = 1) -> None:
    depth = case_ss_flow.depths_of(CONFIG, TOKENS, 1000.0)["y"]
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(found[name], expected[name], depth * steps, name=name)


@contextmanager
def counted(flow: StructureFlow, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """How often each function of the component is called."""
    calls, component = Counter(), flow.component

    class Counting:
        def __getitem__(self, name):
            calls[name] += 1
            return component[name]

    with monkeypatch.context() as patch:
        patch.setattr(flow, "component", Counting())
        yield calls


@torch.inference_mode()
def test_module_against_upstream():
    tensors, config = read(DATA / "golden" / "ss_flow.safetensors")
    model, given = case_ss_flow.module_of(tensors, config), {name: torch.from_numpy(array) for name, array in tensors.items()}
    latents, t, cond = case_ss_flow.named(given, "in.latent."), given["in.t"], given["in.cond"]
    cases = {"y": (given["in.d"], 1), "y_d0": (0 * t, 1), "y_d0_cfg": (0 * t, 0), "y_no_d": (None, 1)}
    for name, (d, factor) in cases.items():
        found = {f"out.{name}.{latent}": v for latent, v in model(latents, t, d, factor * cond).items()}
        assert found.keys() == {key for key in tensors if key.startswith(f"out.{name}.")}
        for key, v in found.items():
            assert_close(v.numpy(), tensors[key], case_ss_flow.depth(key, tensors, config), name=key)


@pytest.mark.parametrize(
    ("batch", "tokens", "t", "d"), [(3, 7, [400], [125]), (3, 2, 400, 0), (2, 4, [10, 990], [250]), (1, 1, [0], [0])]
)
@torch.inference_mode()
def test_golden_files_of_other_batches(flow, batch, tokens, t, d):
    """One time for all elements or one each; parameters of another seed; no condition, no length of a step."""
    random = np.random.default_rng(batch)
    model = seeded(lambda: StructureFlowModel(CONFIG), seed=5)
    latents = {
        name: random.standard_normal((batch, *latent[::-1]), np.float32) for name, latent in CONFIG.latent_mapping.items()
    }
    times = {"t": np.float32(t), "d": np.float32(d)}
    cond = random.standard_normal((batch, tokens, CONFIG.cond_channels), np.float32)
    tensors = {f"state.{name}": value.numpy() for name, value in model.state_dict().items()}
    tensors |= {f"in.latent.{name}": value for name, value in latents.items()}
    tensors |= {f"in.{name}": value for name, value in (times | {"cond": cond}).items()}

    given, cond = {name: torch.from_numpy(value) for name, value in latents.items()}, torch.from_numpy(cond)
    t, d = (torch.from_numpy(value.reshape(-1)) for value in times.values())
    arguments = {"y": (d, cond), "y_d0": (0 * d, cond), "y_d0_cfg": (0 * d, 0 * cond), "y_no_d": (None, cond)}
    for name, (length, tokens_given) in arguments.items():
        found = model(given, t, length, tokens_given)
        tensors |= {f"out.{name}.{latent}": value.numpy() for latent, value in found.items()}
    tensors |= {"mid.t_embedder": model.embed_t(t).numpy(), "mid.d_embedder": model.embed_d(d).numpy()}
    config = asdict(CONFIG)
    found = case_ss_flow.run(tensors, config, flow.component)
    report = check_tensors("ss_flow__other", case_ss_flow.CASE, found, tensors, config)
    assert report.ok and len(report.rows) == 4 * 3 + 2, report.table()


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("d", [250.0, 0.0, None])
def test_velocity_is_the_straight_computation(flow, d, conditional):
    found = flow.velocity(LATENTS, T, d, flow.prepare(COND), conditional)
    assert_velocities_close(found, torch_velocity(LATENTS, T, d, COND if conditional else 0 * COND))


def test_one_time_for_all_elements(flow):
    plan = flow.prepare(COND)
    expected = flow.velocity(LATENTS, np.repeat(T[:1], 2), np.float32([40, 40]), plan)
    assert same_bits(flow.velocity(LATENTS, T[:1], np.float32([40]), plan), expected)
    assert same_bits(flow.velocity(LATENTS, float(T[0]), 40.0, plan), expected)


def test_guided_step_is_two_velocities(flow):
    plan = flow.prepare(COND)
    both = flow.guided_velocities(LATENTS, T, 40.0, plan)
    for found, conditional in zip(both, (True, False), strict=True):
        assert same_bits(found, flow.velocity(LATENTS, T, 40.0, plan, conditional))


def test_batch_elements_do_not_touch(flow):
    together = flow.guided_velocities(LATENTS, T, 40.0, flow.prepare(COND))
    for b in range(2):
        alone = flow.guided_velocities(of_element(b, LATENTS), float(T[b]), 40.0, flow.prepare(COND[b : b + 1]))
        assert all(same_bits(of_element(b, two), one) for two, one in zip(together, alone, strict=True))


def test_condition_of_one_token(flow):
    cond = COND[:, :1].copy()
    assert_velocities_close(flow.velocity(LATENTS, T, 0.0, flow.prepare(cond)), torch_velocity(LATENTS, T, 0.0, cond))


def test_what_is_left_out(flow):
    """Without a condition cross attention is a vector for each stream and block, made with the parameters; with it keys and
    values of the pose's layer are not computed, and those of the shape's by `context` alone."""
    specs = flow.component.manifest
    read = {name: [specs.packed[i] for i in function.packed] for name, function in specs.functions.items()}
    of_cross = [spec for spec in read["finish_unconditional"] if "cross_attn" in spec.name]
    assert [spec.shape for spec in of_cross] == [(1, CONFIG.model_channels)] * 2 * CONFIG.num_blocks
    assert all("to_out.weight" in spec.name and "to_kv.bias" in spec.name for spec in of_cross)
    of_keys = [spec for spec in read["finish"] if "to_kv.weight" in spec.name]
    assert all("pose" in spec.name and "pack_weight" not in spec.name for spec in of_keys)
    assert sum(prod(spec.shape) for spec in of_keys) == CONFIG.num_blocks * 2 * CONFIG.model_channels * CONFIG.cond_channels
    assert all("shape" in spec.name for spec in read["context"])
    # and what several functions read is there once
    assert len({spec.name for spec in specs.packed}) == len(specs.packed)


def test_sample(flow, monkeypatch):
    cond = COND[:1].copy()
    with counted(flow, monkeypatch) as calls:
        found = flow.sample(3, cond)
    guided = 19  # of 25 steps: t / (3 - 2 t) <= 1 / 2
    assert calls == {"context": 1, **dict.fromkeys(METHODS[:3], 25), "begin": 25, "finish": 25, "finish_unconditional": guided}
    assert all(np.isfinite(found[name]).all() and found[name].shape == x.shape for name, x in flow.noise(3).items())
    plan = flow.prepare(cond)
    assert same_bits(flow.sample(flow.noise(3), plan), found)
    assert not same_bits(flow.sample(flow.noise(4), plan, 2), flow.sample(3, plan, 2))


@pytest.mark.parametrize(
    ("options", "of_sampler"),
    [
        ({}, {"no_shortcut": True, "guidance": Guidance(7.0, (0, 500)), "rescale_t": 3.0}),
        ({"shortcut": True}, {"no_shortcut": False, "guidance": None, "rescale_t": 3.0}),
        (
            {"shortcut": True, "guidance": Guidance(2.0), "rescale_t": 1.0},
            {"no_shortcut": False, "guidance": Guidance(2.0), "rescale_t": 1.0},
        ),
    ],
    ids=["flow", "shortcut", "guided shortcut"],
)
def test_sample_is_the_sampler_on_velocities(flow, options, of_sampler):
    states = []
    found = flow.sample(LATENTS, COND, 3, on_step=lambda step: states.append(step.x), **options)

    def velocity(x, time, d, conditional):
        return torch_velocity(x, np.full(2, time), float(d), COND if conditional else 0 * COND)

    strength = of_sampler["guidance"].strength if of_sampler["guidance"] else 0
    assert_velocities_close(found, sample_shortcut(velocity, LATENTS, 3, **of_sampler), (1 + 2 * strength) ** 2)
    assert len(states) == 3
    assert same_bits(states[-1], found)


VIEWS = [normal(seed, 2, tokens, CONFIG.cond_channels) for seed, tokens in ((21, 5), (22, 5), (23, 7))]
GUIDED = {"guidance": Guidance(2.0, (0, 300)), "rescale_t": 1.0}  # in the first two of four steps


def test_the_shape_does_not_see_the_pose(flow):
    plan = flow.prepare(COND)
    other = {name: x if name == SHAPE else x + 1 for name, x in LATENTS.items()}
    shapes = [flow.velocity(x, T, 0.0, plan)[SHAPE] for x in (LATENTS, other)]
    assert shapes[0].tobytes() == shapes[1].tobytes()


def of_views(flow, counting):
    """A sampler on velocities of views one by one: the pose of the first, the shape the mean of those that count in a step."""
    plans, index = [flow.prepare(view) for view in VIEWS], [0]

    def velocity(x, time, d, conditional):
        found = [flow.velocity(x, float(time), float(d), plan, conditional) for plan in plans]
        return found[0] | {SHAPE: mean([found[i][SHAPE] for i in counting(index[0])])}

    options = {"no_shortcut": True, "on_step": lambda step: index.__setitem__(0, step.index + 1), **GUIDED}
    return sample_shortcut(velocity, LATENTS, 4, **options)


@pytest.mark.parametrize(
    ("mode", "counting"), [("mean", lambda step: (0, 1, 2)), ("cycle", lambda step: (step % 3,))], ids=["mean", "cycle"]
)
def test_several_views_are_those_of_the_sampler_on_each(flow, mode, counting):
    found = flow.sample(LATENTS, VIEWS, 4, multi_view=mode, **GUIDED)
    assert same_bits(found, of_views(flow, counting))
    assert not same_bits(found, flow.sample(LATENTS, VIEWS[0], 4, **GUIDED))


@pytest.mark.parametrize("mode", ["mean", "cycle"])
def test_one_view_and_equal_views_are_that_of_one(flow, mode):
    expected = flow.sample(LATENTS, COND, 4, **GUIDED)
    for views in ([COND], [COND, COND], [COND] * 3):
        assert same_bits(flow.sample(LATENTS, views, 4, multi_view=mode, **GUIDED), expected)


def test_the_order_of_further_views_does_not_count_in_a_mean(flow):
    first, second, third = VIEWS
    expected = flow.sample(LATENTS, [first, second, third], 3)
    assert same_bits(flow.sample(LATENTS, [first, third, second], 3), expected)
    other = flow.sample(LATENTS, [second, first, third], 3)
    assert not np.array_equal(other["rotation"], expected["rotation"])


def test_the_velocity_without_a_condition_is_computed_once(flow, monkeypatch):
    for mode, calls_of_four in (("mean", 12), ("cycle", 6)):
        with counted(flow, monkeypatch) as calls:
            flow.sample(LATENTS, VIEWS, 4, multi_view=mode, **GUIDED)
        assert (calls["context"], calls["finish"], calls["finish_unconditional"]) == (3, calls_of_four, 2)


@pytest.mark.parametrize(
    ("cond", "options", "message"),
    [
        ([], {}, "views: expected an integer of at least 1, given 0"),
        ([COND] * 9, {}, "views: expected at most 8, given 9"),
        ([COND, COND], {"multi_view": "most"}, "multi_view: expected one of 'mean', 'cycle', given 'most'"),
        ([COND, COND[:1]], {}, r"cond: expected views of one batch size, given \[2, 1\]"),
        ([COND, None], {}, "cond: expected a numpy array, given NoneType"),
        (None, {}, "cond: expected a numpy array, given NoneType"),
    ],
)
def test_views_that_are_refused(flow, cond, options, message):
    with pytest.raises(ValueError, match=message):
        flow.sample(LATENTS, cond, 2, **options)


@pytest.mark.parametrize("size", PRESETS)
def test_sizes(size):
    config = preset(size)
    with torch.device("meta"):
        model = StructureFlowModel(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert {"tiny": 1.0e5, "wide": 4.81e6, "full": 9.64e8}[size] == pytest.approx(parameters, rel=0.01)
    if size == "tiny":
        made = example(size)
        assert made.reference().keys() == config.streams.keys()
        assert made.inputs.keys() == made.dynamic.keys() == set(METHODS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_channels": 0}, "model_channels: expected an integer of at least 1, given 0"),
        ({"num_blocks": 1.5}, "num_blocks: expected an integer"),
        ({"num_heads": 3}, "num_heads: expected a divisor of model_channels 16, given 3"),
        ({"mlp_ratio": 0}, "mlp_ratio: expected a positive number, given 0"),
        ({"latent_mapping": {}}, "latent_mapping: expected 'shape' among the latents, given none"),
        ({"latent_mapping": {"shape": (4,)}}, r"latent_mapping\['shape'\]: expected in_channels, token_len, given \(4,\)"),
        ({"latent_mapping": {"shape": (4, 0)}}, r"latent_mapping\['shape'\].token_len: expected an integer of at least 1"),
        ({"latent_share_transformer": {}}, "latent_share_transformer: expected one stream, not named 'shape', of rotation, sc"),
        ({"latent_share_transformer": {"pose": ("scale",)}}, "latent_share_transformer: .* of rotation, scale, given"),
        ({"latent_share_transformer": {"shape": ("rotation", "scale")}}, "latent_share_transformer: "),
    ],
)
def test_configs_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(CONFIG, **change)


def test_unknown_preset():
    with pytest.raises(ValueError, match="preset: expected one of 'tiny', 'wide', 'full', given 'huge'"):
        preset("huge")


def test_component_of_other_latents(flow):
    other = replace(CONFIG, latent_mapping=CONFIG.latent_mapping | {SHAPE: (4, 8)})
    with pytest.raises(ValueError, match="component: expected tokens and channels of latents"):
        StructureFlow(flow.component, other)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (COND.astype("f8"), "cond: expected float32 .*, given float64"),
        (COND[0], r"cond: expected float32 \[any, any, 16\], given float32 \[5, 16\]"),
        (COND[..., :7].copy(), r"cond: .*\[2, 5, 7\]"),
        (COND[:, :0], "cond: expected .* B and L of at least 1"),
        (COND.tolist(), "cond: expected a numpy array"),
        (np.full_like(COND, np.inf), "cond: expected finite values, given 160"),
    ],
)
def test_bad_condition(flow, cond, message):
    with pytest.raises(ValueError, match=message):
        flow.prepare(cond)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": [1]}, "latents: expected a dict of scale, shape, rotation, given list"),
        ({"latents": {"shape": LATENTS["shape"]}}, "latents: expected a dict of scale, shape, rotation, given shape"),
        ({"latents": of_element(0, LATENTS)}, r"latents\['scale'\]: expected float32 \[2, 1, 4\], given float32 \[1, 1, 4\]"),
        ({"latents": LATENTS | {"shape": LATENTS["shape"] * np.nan}}, r"latents\['shape'\]: expected finite values, given 72"),
        ({"t": "now"}, "t: expected a numpy array, given str"),
        ({"t": np.float32([1, 2, 3])}, r"t: expected float32 \[2\], given float32 \[3\]"),
        ({"d": np.float32([[1]])}, r"d: expected float32 \[2\], given float32 \[1, 1\]"),
        ({"t": np.nan}, "t: expected finite values"),
        ({"d": np.float64([0, 0])}, "d: expected float32"),
        ({"plan": None}, "plan: expected what `prepare` of this model returned, given NoneType"),
    ],
)
def test_bad_velocity(flow, change, message):
    given = {"latents": LATENTS, "t": T, "d": 0.0, "plan": flow.prepare(COND)} | change
    with pytest.raises(ValueError, match=message):
        flow.velocity(**given)


def test_plan_of_another_model(flow):
    other = StructureFlow(flow.component, CONFIG)
    with pytest.raises(ValueError, match="plan: expected what `prepare` of this model returned"):
        other.sample(0, flow.prepare(COND))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": -1}, "noise: expected an integer of at least 0, given -1"),
        ({"noise": "x"}, "noise: expected an integer of at least 0, given 'x'"),
        ({"noise": {}}, "noise: expected a dict of scale, shape, rotation"),
        ({"steps": 0}, "steps: expected an integer of at least 1"),
        ({"guidance": 7.0}, "guidance: expected a Guidance or None, given float"),
        ({"rescale_t": -1}, "rescale_t: expected a number above 0"),
    ],
)
def test_bad_sampling(flow, change, message):
    with pytest.raises(ValueError, match=message):
        flow.sample(**{"noise": 0, "cond": COND} | change)
