"""The structured-latent generator: against an oracle in numpy, the same bits, any size, weights by name, bad input.

The golden case `slat_flow` compares it with upstream's results.
"""

from dataclasses import asdict, replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from sam3d_tvm.models import slat_generator as slat
from sam3d_tvm.models.slat_generator import PRESETS, SlatConfig, SlatGenerator
from sam3d_tvm.multi_view import mean
from sam3d_tvm.sampler import Guidance, sample_flow
from sparse_ops.deploy.weights import LazyArray
from tests.golden import case_slat_flow
from tests.golden.runner import check_tensors
from tests.sam3d_tvm.slat_oracle import Oracle
from tests.sam3d_tvm.tiny import CONFIG, compiled, generator, normal, voxels
from tests.tolerance import assert_close

COND = normal(1, 1, 5, CONFIG.cond_channels)
OTHER = replace(  # two levels, odd widths, one residual block a level, heads by their width, no norms of heads
    CONFIG,
    in_channels=3,
    model_channels=20,
    cond_channels=7,
    out_channels=5,
    num_blocks=1,
    num_heads=None,
    num_head_channels=10,
    mlp_ratio=1.5,
    patch_size=4,
    num_io_res_blocks=1,
    io_block_channels=(9, 12),
    qk_rms_norm=False,
)
BARE = replace(CONFIG, model_channels=24, num_blocks=1, num_heads=3, patch_size=1, io_block_channels=())


def arrays_of(state) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in state.items()}


@pytest.mark.parametrize("config", [CONFIG, OTHER, BARE], ids=["tiny", "other", "bare"])
def test_velocity_is_that_of_the_oracle(config):
    state = arrays_of(slat.seeded_state(config, 3))
    model = generator() if config is CONFIG else SlatGenerator(config, state)
    oracle = Oracle(config, arrays_of(slat.seeded_state(config, 0)) if config is CONFIG else state)
    for rows, batch in ((0, 1), (1, 1), (7, 3), (150, 2)):
        coords, x = voxels(rows, rows, batch), normal(rows, rows, config.in_channels)
        cond = normal(2, batch, 4, config.cond_channels)
        times = np.linspace(1, 900, batch, dtype=np.float32)
        plan = model.prepare(coords, cond)
        assert (plan.rows, plan.batch) == (rows, batch)
        depths = case_slat_flow.depths_of(config, coords, 4, 900.0)
        for conditional, tokens in ((True, cond), (False, 0 * cond)):
            given = model.velocity(x, times, plan, conditional)
            assert_close(given, oracle.velocity(coords, x, times, tokens), depths["y"], dtype=np.float32)


def test_the_same_bits_in_every_run():
    coords, noise = voxels(60), normal(4, 60, CONFIG.in_channels)

    def sample(model):
        return model.sample(coords, COND, noise, 3, Guidance(2.0)).tobytes()

    assert sample(generator()) == sample(generator()) == sample(SlatGenerator.from_preset("tiny", seed=0, vm=compiled()))
    assert sample(generator()) != sample(SlatGenerator.from_preset("tiny", seed=1, vm=compiled()))


def test_elements_of_a_batch_do_not_see_each_other():
    coords, cond = voxels(90, batch=3), normal(5, 3, 6, CONFIG.cond_channels)
    x, times = normal(6, 90, CONFIG.in_channels), np.float32([10, 500, 990])
    together = generator().velocity(x, times, generator().prepare(coords, cond))
    for b in range(3):
        rows = coords[:, 0] == b
        plan = generator().prepare(coords[rows] * np.int32([0, 1, 1, 1]), cond[b : b + 1])
        np.testing.assert_array_equal(generator().velocity(x[rows], float(times[b]), plan), together[rows])


def test_one_time_for_all_elements():
    coords, x, cond = voxels(40, batch=2), normal(12, 40, CONFIG.in_channels), normal(13, 2, 6, CONFIG.cond_channels)
    plan = generator().prepare(coords, cond)
    expected = generator().velocity(x, np.float32([300, 300]), plan)
    for t in (np.float32([300]), 300.0):
        np.testing.assert_array_equal(generator().velocity(x, t, plan), expected)


@pytest.mark.parametrize("t", [[700], 700, [3, 700]])
def test_golden_files_of_other_batches(t):
    """Two elements with one time for both, or one each, and another number of tokens."""
    state, times = arrays_of(slat.seeded_state(CONFIG, 7)), {"t": np.float32(t), "t2": np.float32([20])}
    coords, x, cond = voxels(70, 3, 2), normal(14, 1, 70, CONFIG.in_channels), normal(15, 2, 9, CONFIG.cond_channels)
    tensors = {f"state.{name}": value for name, value in state.items()}
    tensors |= {"in.x": x, "in.coords": coords, "in.cond": cond} | {f"in.{name}": value for name, value in times.items()}
    oracle = Oracle(CONFIG, state)
    for name, time, factor in (("y", "t", 1), ("y_t2", "t2", 1), ("y_cfg", "t", 0)):
        both = np.broadcast_to(times[time], 2)
        tensors[f"out.{name}"] = oracle.velocity(coords, x[0], both, factor * cond)[None].astype(np.float32)
    config = asdict(CONFIG)
    found = case_slat_flow.run(tensors, config, vm=compiled())
    report = check_tensors("slat_flow__other", case_slat_flow.CASE, found, tensors, config)
    assert report.ok and len(report.rows) == 3, report.table()


def test_rows_may_come_in_any_order():
    coords, x, order = voxels(80), normal(7, 80, CONFIG.in_channels), np.random.default_rng(8).permutation(80)
    straight = generator().velocity(x, 300.0, generator().prepare(coords, COND))
    shuffled = generator().velocity(x[order], 300.0, generator().prepare(coords[order], COND))
    assert_close(shuffled, straight[order], depth=case_slat_flow.depths_of(CONFIG, coords, 5, 1.0)["y"])


def test_inputs_matter():
    """A condition, a time, or noise that changed nothing would pass many another test."""
    coords, x = voxels(40), normal(9, 40, CONFIG.in_channels)
    plan = generator().prepare(coords, COND)
    base = generator().velocity(x, 300.0, plan)
    moved = generator().prepare(coords + np.int32([0, 1, 0, 0]), COND)
    for other in (
        generator().velocity(x, 310.0, plan),
        generator().velocity(x, 300.0, plan, conditional=False),
        generator().velocity(x + np.float32(0.1), 300.0, plan),
        generator().velocity(x, 300.0, generator().prepare(coords, 2 * COND)),
        generator().velocity(x, 300.0, moved),
    ):
        assert np.abs(other - base).max() > 1e-3


def test_sample_is_the_sampler_on_the_velocity():
    coords, noise, guidance = voxels(30), normal(10, 30, CONFIG.in_channels), Guidance(1.5, (0, 600))
    model, seen = generator(), []
    plan = model.prepare(coords, COND)
    expected = sample_flow(
        lambda x, t, conditional: model.velocity(x, t, plan, conditional), noise, 4, rescale_t=3.0, guidance=guidance
    )
    given = model.sample(coords, COND, noise, 4, guidance, rescale_t=3.0, on_step=lambda step: seen.append(step.index))
    np.testing.assert_array_equal(given, expected)
    assert seen == [0, 1, 2, 3] and given.dtype == np.float32


COORDS, NOISE = voxels(30), normal(10, 30, CONFIG.in_channels)
VIEWS = [normal(seed, 1, tokens, CONFIG.cond_channels) for seed, tokens in ((21, 5), (22, 5), (23, 7))]
GUIDED = Guidance(2.0, (0, 300))  # in the first two of four steps


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
@pytest.mark.parametrize(
    ("mode", "counting"), [("mean", lambda step: (0, 1, 2)), ("cycle", lambda step: (step % 3,))], ids=["mean", "cycle"]
)
def test_several_views_are_those_of_the_sampler_on_each(mode, counting, solver):
    model, index = generator(), [0]
    plans = [model.prepare(COORDS, view) for view in VIEWS]

    def velocity(x, time, conditional):
        return mean([model.velocity(x, time, plans[i], conditional) for i in counting(index[0])])

    options = {"guidance": GUIDED, "solver": solver}
    expected = sample_flow(velocity, NOISE, 4, on_step=lambda step: index.__setitem__(0, step.index + 1), **options)
    found = model.sample(COORDS, VIEWS, NOISE, 4, multi_view=mode, **options)
    assert found.tobytes() == expected.tobytes()
    assert found.tobytes() != model.sample(COORDS, VIEWS[0], NOISE, 4, **options).tobytes()


@pytest.mark.parametrize("mode", ["mean", "cycle"])
def test_one_view_and_equal_views_are_that_of_one(mode):
    expected = generator().sample(COORDS, COND, NOISE, 3, GUIDED)
    for views in ([COND], [COND, COND], [COND] * 5):
        assert generator().sample(COORDS, views, NOISE, 3, GUIDED, multi_view=mode).tobytes() == expected.tobytes()


def test_the_order_of_views_does_not_count_in_a_mean_but_in_turns():
    def found(order, mode):
        return generator().sample(COORDS, [VIEWS[i] for i in order], NOISE, 3, GUIDED, multi_view=mode).tobytes()

    assert found((0, 1, 2), "mean") == found((2, 0, 1), "mean") == found((1, 0, 2), "mean")
    assert found((0, 1, 2), "cycle") != found((0, 2, 1), "cycle")


@pytest.mark.parametrize(
    ("cond", "options", "message"),
    [
        ([], {}, "views: expected an integer of at least 1, given 0"),
        ([COND] * 9, {}, "views: expected at most 8, given 9"),
        ([COND, COND], {"multi_view": "most"}, "multi_view: expected one of 'mean', 'cycle', given 'most'"),
        ([COND, np.concatenate([COND, COND])], {}, r"cond: expected float32 \[1, L, .*\], given float32 \[2, 5"),
        ([COND, COND[:, :0]], {}, r"cond: expected \[B, L, C\] with L of at least 1"),
        ([COND, None], {}, "cond: expected a numpy array"),
    ],
)
def test_views_that_are_refused(cond, options, message):
    with pytest.raises(ValueError, match=message):
        generator().sample(COORDS, cond, NOISE, 2, **options)


def test_plans_of_views_are_of_the_same_voxels():
    plans = [generator().prepare(COORDS, COND) for _ in range(2)]
    with pytest.raises(ValueError, match="plan: expected views of the same voxels"):
        generator().sample_plan(plans, NOISE, 2)


def test_weights_from_a_file(tmp_path):
    state, path = slat.seeded_state(CONFIG, 0), tmp_path / "weights.safetensors"
    narrow = {name: np.asarray(value).astype(np.float16) for name, value in state.items()}
    save_file({f"model.{name}": value for name, value in narrow.items()} | {"other.x": np.zeros(3)}, path)
    wide = {name: value.astype(np.float32) for name, value in narrow.items()}
    coords, x = voxels(20), normal(11, 20, CONFIG.in_channels)
    results = [
        model.velocity(x, 100.0, model.prepare(coords, COND))
        for model in (
            SlatGenerator.from_state(CONFIG, path, prefix="model.", vm=compiled()),
            SlatGenerator.from_state(CONFIG, wide, vm=compiled()),
        )
    ]
    np.testing.assert_array_equal(*results)
    with pytest.raises(ValueError, match=r"expected a \.safetensors file, given '.*nowhere'"):
        SlatGenerator.from_state(CONFIG, tmp_path / "nowhere")
    (tmp_path / "noise").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match=r"expected a \.safetensors file, given '.*noise'"):
        SlatGenerator.from_state(CONFIG, tmp_path / "noise")


def test_every_wrong_parameter_is_named():
    state = arrays_of(slat.seeded_state(CONFIG))
    del state["blocks.1.norm2.bias"]
    state["blocks.2.norm2.bias"] = np.zeros(48, np.float32)
    state["out_layer.weight"] = np.zeros((16, 8), np.float32)
    state["input_layer.bias"] = np.zeros(16)
    state["t_embedder.mlp.0.bias"] = [0.0] * 48
    with pytest.raises(ValueError) as error:
        SlatGenerator.from_state(CONFIG, state)
    for text in (
        "blocks.1.norm2.bias: missing, expected [48]",
        "blocks.2.norm2.bias: not a parameter of this model",
        "out_layer.weight: expected float32 [8, 16], given float32 [16, 8]",
        "input_layer.bias: expected float32 [16], given float64 [16]",
        "t_embedder.mlp.0.bias: expected an array, given list",
    ):
        assert text in str(error.value)
    assert str(error.value).count(";") == 4  # nothing else is named


def test_seeded_parameters_depend_on_seed_and_name_only():
    small, again, other = (slat.seeded_state(PRESETS["small"], seed) for seed in (5, 5, 6))
    tiny = slat.seeded_state(CONFIG, 5)
    assert all(isinstance(value, LazyArray) for value in small.values())
    name = "blocks.0.mlp.mlp.0.weight"
    np.testing.assert_array_equal(np.asarray(small[name]), np.asarray(again[name]))
    assert (np.asarray(small[name]) != np.asarray(other[name])).any()
    np.testing.assert_array_equal(np.asarray(small["out_layer.bias"]), np.asarray(tiny["out_layer.bias"]))
    assert np.asarray(small[name]).dtype == np.float32


def test_the_full_preset_has_the_sizes_of_the_real_model():
    full = PRESETS["full"]
    shapes = slat.parameter_shapes(full)
    assert (full.num_blocks, full.model_channels, full.heads, full.hidden) == (24, 1024, 16, 4096)
    assert shapes["blocks.23.self_attn.to_qkv.weight"] == (3072, 1024)
    assert shapes["input_blocks.1.conv1.conv.weight"] == (1024, 3, 3, 3, 128)
    assert shapes["out_blocks.0.norm1.weight"] == (2048,)
    assert sum(np.prod(shape) for shape in shapes.values()) > 5e8


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_channels": 0}, "model_channels: expected an integer of at least 1, given 0"),
        ({"num_blocks": -1}, "num_blocks: expected an integer of at least 0, given -1"),
        ({"num_heads": 5}, "num_heads: expected a divisor of model_channels 48, given 5"),
        ({"num_heads": None, "num_head_channels": 64}, "num_heads: expected a divisor of model_channels 48, given 0"),
        ({"patch_size": 4}, "patch_size: expected 2 for 1 io_block_channels, given 4"),
        ({"io_block_channels": (16, 0), "patch_size": 4}, r"io_block_channels\[1\]: expected an integer of at least 1"),
        ({"mlp_ratio": 0}, "mlp_ratio: expected a positive number, given 0"),
        ({"pe_mode": "rope"}, "pe_mode: expected 'ape', given 'rope'"),
        ({"qk_rms_norm_cross": True}, "qk_rms_norm_cross: expected False, given True"),
        ({"force_zeros_cond": False}, "force_zeros_cond: expected True, given False"),
    ],
)
def test_bad_configs(change, says):
    with pytest.raises(ValueError, match=says):
        replace(CONFIG, **change)


def test_configs_from_dicts():
    values = {"resolution": 16, "in_channels": 8, "model_channels": 64, "cond_channels": 32, "out_channels": 8, "num_blocks": 2}
    config = SlatConfig.from_dict(values | {"num_heads": 4, "io_block_channels": [24], "qk_rms_norm": True})
    assert config.io_block_channels == (24,) and config.heads == 4 and config.hidden == 256
    with pytest.raises(ValueError, match=r"config: expected names among .*, given colour too"):
        SlatConfig.from_dict(values | {"colour": 1})
    with pytest.raises(ValueError, match="config: model_channels, num_blocks missing"):
        SlatConfig.from_dict({name: n for name, n in values.items() if name not in ("model_channels", "num_blocks")})
    with pytest.raises(ValueError, match="preset: expected one of 'tiny', 'small', 'full', given 'huge'"):
        SlatGenerator.from_preset("huge")
    with pytest.raises(ValueError, match="seed: expected an integer of at least 0, given -1"):
        SlatGenerator.from_preset("tiny", seed=-1)


@pytest.mark.parametrize(
    ("coords", "cond", "says"),
    [
        (voxels(4).astype(np.int64), COND, r"coords: expected int32 \[N, 4\], given int64 \[4, 4\]"),
        (voxels(4)[:, :3], COND, r"coords: expected int32 \[N, 4\], given int32 \[4, 3\]"),
        (voxels(4).tolist(), COND, r"coords: expected a numpy array int32 \[N, 4\], given list"),
        (voxels(4) + np.int32([1, 0, 0, 0]), COND, "coords: expected batch index from 0 to 0, given 1 in row 0"),
        (voxels(4) + np.int32([0, 0, 64, 0]), COND, "coords: expected y from 0 to 63, given 6[4-9]|7[0-9] in row 0"),
        (voxels(4) - np.int32([0, 99, 0, 0]), COND, "coords: expected x from 0 to 63, given -9[0-9] in row 0"),
        (
            np.int32([[1, 0, 0, 0], [0, 0, 0, 0]]),
            COND.repeat(2, 0),
            "coords: expected the rows of each batch element together, ascending by batch index, given 0 after 1 in row 1",
        ),
        (voxels(4).repeat(2, 0), COND, "coords: row 1 repeats the coordinates of row 0"),
        (voxels(4), COND[0], r"cond: expected float32 \[B, L, 24\], given float32 \[5, 24\]"),
        (voxels(4), COND[:, :, :9], r"cond: expected float32 \[B, L, 24\], given float32 \[1, 5, 9\]"),
        (voxels(4), COND.astype(np.float64), r"cond: expected float32 \[B, L, 24\], given float64"),
        (voxels(4), COND[:, :0], r"cond: expected \[B, L, C\] with B and L of at least 1, given \[1, 0, 24\]"),
        (voxels(4), np.where(COND > 1, np.nan, COND), r"cond: expected finite values, given \d+ that are not"),
    ],
)
def test_bad_input_of_prepare(coords, cond, says):
    with pytest.raises(ValueError, match=says):
        generator().prepare(coords, cond)


@pytest.mark.parametrize(
    ("x", "t", "says"),
    [
        (normal(0, 5, 8), 1.0, r"x: expected float32 \[4, 8\], given float32 \[5, 8\]"),
        (normal(0, 4, 7), 1.0, r"x: expected float32 \[4, 8\], given float32 \[4, 7\]"),
        (normal(0, 4, 8).astype(np.float16), 1.0, r"x: expected float32 \[4, 8\], given float16"),
        (np.full((4, 8), np.inf, np.float32), 1.0, "x: expected finite values, given 32 that are not"),
        (normal(0, 4, 8), np.float32([1, 2]), r"t: expected float32 \[1\], given float32 \[2\]"),
        (normal(0, 4, 8), np.float32([[1]]), r"t: expected float32 \[1\], given float32 \[1, 1\]"),
        (normal(0, 4, 8), np.array([1.0]), r"t: expected float32 \[1\], given float64 \[1\]"),
        (normal(0, 4, 8), float("nan"), "t: expected finite values, given 1 that are not"),
    ],
)
def test_bad_input_of_velocity(x, t, says):
    with pytest.raises(ValueError, match=says):
        generator().velocity(x, t, generator().prepare(voxels(4), COND))


def test_bad_input_of_the_others():
    with pytest.raises(ValueError, match="plan: expected a SlatPlan of this generator, given tuple"):
        generator().velocity(normal(0, 4, 8), 1.0, ())
    plan = SlatGenerator.from_preset("tiny", seed=1, vm=compiled()).prepare(voxels(4), COND)
    with pytest.raises(ValueError, match="plan: expected one that this generator prepared, given that of another"):
        generator().velocity(normal(0, 4, 8), 1.0, plan)
    with pytest.raises(ValueError, match=r"noise: expected float32 \[4, 8\], given float32 \[3, 8\]"):
        generator().sample(voxels(4), COND, normal(0, 3, 8))
    with pytest.raises(ValueError, match=r"taps: expected names among t_emb, .*, given block9 too"):
        SlatGenerator.from_preset("tiny", vm=compiled(), taps=["block9"])
