"""What the structured-latent generator leaves out: the same result with and without, and that it is left out indeed."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.frontend.nn import spec

from sam3d_tvm.models.slat_generator import SlatGenerator
from sam3d_tvm.models.slat_generator.config import ALL_SAVINGS, Savings
from sam3d_tvm.models.sparse_blocks import SparseResBlock3d
from sam3d_tvm.sampler import Guidance
from sparse_ops import nn
from sparse_ops.build import build, pack_params
from tests.golden import case_slat_flow, depths
from tests.sam3d_tvm.tiny import CONFIG, compiled, generator, normal, voxels
from tests.tolerance import assert_close

COND = normal(1, 2, 5, CONFIG.cond_channels)
COORDS, NOISE = voxels(70, batch=2), normal(2, 70, CONFIG.in_channels)
BLOCKS = CONFIG.num_blocks


def without(*names: str) -> SlatGenerator:
    """The tiny generator with some savings switched off."""
    savings = replace(ALL_SAVINGS, **dict.fromkeys(names, False))
    return SlatGenerator.from_preset("tiny", seed=0, vm=compiled(), savings=savings)


@contextmanager
def counted(model: SlatGenerator) -> Iterator[Counter]:
    """How often each part of the model is run."""
    calls, inner = Counter(), model._call

    def call(part, *args, **options):
        calls[part] += 1
        return inner(part, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_call", call)
        yield calls


def sampled(model: SlatGenerator) -> np.ndarray:
    """Two steps of two calls each, of which those at t = 0 and t = 0.25 are guided."""
    return model.sample(COORDS, COND, NOISE, 2, Guidance(2.0, (0, 300)), solver="midpoint")


@pytest.mark.parametrize("name", ["context_once", "modulation_table", "shared_start"])
def test_the_same_bits_without(name):
    assert sampled(without(name)).tobytes() == sampled(generator()).tobytes()


def test_a_constant_without_condition_is_what_attention_computes():
    on, off = generator(), without("constant_unconditional")
    results = [model.velocity(NOISE, 300.0, model.prepare(COORDS, COND), conditional=False) for model in (on, off)]
    assert_close(*results, case_slat_flow.depths_of(CONFIG, COORDS, 5, 1.0)["y"])


def test_all_can_be_switched_off():
    off = without(*(field.name for field in fields(Savings)))
    plan, own = off.prepare(COORDS, COND), generator().prepare(COORDS, COND)
    given, nothing = off.guided_velocities(NOISE, 300.0, plan)
    assert given.tobytes() == generator().velocity(NOISE, 300.0, own).tobytes()
    assert_close(nothing, generator().velocity(NOISE, 300.0, own, False), case_slat_flow.depths_of(CONFIG, COORDS, 5, 1.0)["y"])


def test_keys_and_values_are_computed_by_prepare():
    for model, of_prepare, of_velocity in ((generator(), BLOCKS, 0), (without("context_once"), 0, BLOCKS)):
        with counted(model) as calls:
            plan = model.prepare(COORDS, COND)
            assert calls["block_context"] == of_prepare
            model.velocity(NOISE, 1.0, plan)
            assert calls["block_context"] == of_prepare + of_velocity


def test_without_a_condition_nothing_attends_to_it():
    for model, attentions in ((generator(), 0), (without("constant_unconditional"), BLOCKS)):
        plan = model.prepare(COORDS, COND)
        with counted(model) as calls:
            model.velocity(NOISE, 1.0, plan, conditional=False)
        assert (calls["block_cross"], calls["add_constant"]) == (attentions, BLOCKS - attentions)


@pytest.mark.parametrize(("solver", "stages"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_a_schedule_is_looked_up(solver, stages):
    for model, times in ((generator(), 1), (without("modulation_table"), 2 * stages)):
        with counted(model) as calls:
            model.sample(COORDS, COND, NOISE, 2, solver=solver)
        assert (calls["time"], calls["block_modulation"], calls["out_layer"]) == (times, times * BLOCKS, 2 * stages)


def test_a_guided_step_starts_once():
    for model, starts in ((generator(), 4), (without("shared_start"), 6)):  # of 4 calls 2 are guided
        with counted(model) as calls:
            sampled(model)
        assert calls["input_layer"] == calls["input_block1"] == starts
        assert calls["block_attend"] == starts + 6 * (BLOCKS - 1)


def test_the_two_velocities_are_those_of_two_calls():
    plan = generator().prepare(COORDS, COND)
    both = generator().guided_velocities(NOISE, 200.0, plan)
    for given, conditional in zip(both, (True, False), strict=True):
        assert given.tobytes() == generator().velocity(NOISE, 200.0, plan, conditional).tobytes()


def test_a_table_serves_any_of_its_times():
    plan, times = generator().prepare(COORDS, COND), np.float32([900, 10, 500, 10])
    table = generator().modulation(times)
    np.testing.assert_array_equal(table.times, np.float32([10, 500, 900]))
    for t in (np.float32([500, 10]), np.float32([900, 900])):
        given = generator().velocity(NOISE, t, plan, modulation=table)
        assert given.tobytes() == generator().velocity(NOISE, t, plan).tobytes()
    with pytest.raises(ValueError, match="t: expected times of the modulation, given 11"):
        generator().velocity(NOISE, np.float32([10, 11]), plan, modulation=table)
    with pytest.raises(ValueError, match="t: expected times of the modulation, given 901"):
        generator().velocity(NOISE, 901.0, plan, modulation=table)
    with pytest.raises(ValueError, match="modulation: expected one that this generator prepared, given that of another"):
        generator().velocity(NOISE, 10.0, plan, modulation=without("context_once").modulation(times))
    for bad, says in (
        (times[:0], "times: expected at least one, given none"),
        ([1.0], r"times: expected a numpy array float32 \[T\], given list"),
        (times.astype(np.float64), r"times: expected float32 \[T\], given float64 \[4\]"),
    ):
        with pytest.raises(ValueError, match=says):
            generator().modulation(bad)


class Upsampled(nn.Module):
    """The same residual block behind the same downsampling, with `parent_convolution` and without."""

    def __init__(self, channels: int, out_channels: int):
        self.down = nn.Downsample(2)
        self.on, self.off = (
            SparseResBlock3d(channels, 1, out_channels, upsample=True, parent_convolution=saving) for saving in (True, False)
        )

    def forward(self, feats: nn.Tensor, coords: nn.Tensor, scale: nn.Tensor, shift: nn.Tensor):
        x = self.down(nn.SymbolicSparseTensor.of(feats, coords, scale.shape[0]))
        return self.on.modulated(x, scale, shift).feats, self.off.modulated(x, scale, shift).feats


def test_the_convolution_of_parents_is_that_of_their_children():
    channels, out_channels, rng = 9, 12, np.random.default_rng(0)
    inputs = {
        "feats": spec.Tensor(["rows", channels], "float32"),
        "coords": spec.Tensor(["rows", 4], "int32"),
        "scale": spec.Tensor(["batch", out_channels], "float32"),
        "shift": spec.Tensor(["batch", out_channels], "float32"),
    }
    mod, params = Upsampled(channels, out_channels).export_tvm({"forward": inputs})
    assert str(mod).count("upsampled_conv(") == 1  # in one of them
    vm = relax.VirtualMachine(build(mod, lift_params=True), tvm.cpu())
    values = {}
    for name, p in params:  # both blocks get the same
        values.setdefault(name.split(".", 1)[1], rng.standard_normal([int(n) for n in p.shape], dtype=np.float32))
    weights = pack_params(vm, "forward", lambda i: tvm.runtime.tensor(values[params[i][0].split(".", 1)[1]]))
    for rows in (0, 1, 2, 150):
        coords = voxels(rows, 3, batch=2)
        arrays = [normal(4, rows, channels), coords, normal(5, 2, out_channels), normal(6, 2, out_channels)]
        on, off = (y.numpy() for y in vm["forward"](*map(tvm.runtime.tensor, arrays), *weights))
        assert on.shape == (rows, out_channels)
        assert_close(on, off, depths.resblock(channels, out_channels, 1, depths.neighbours(coords)))
