"""The golden runner itself: what it passes, what it refuses, and how it says so."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import DATA
from tests.golden import CASES, case_pipeline_tiny, runner
from tests.golden.case import Case

TENSORS = {
    "state.scale": np.float32([2.0]),
    "in.x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "mid.count": np.int64([3]),
    "out.y": np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4),
}


@pytest.fixture
def doubling(monkeypatch):
    """A case `doubling`, whose answers a test may change."""
    answers = {}

    def run(tensors, config):
        x = tensors["in.x"]
        return {"mid.count": np.int64([len(x)]), "out.y": x * tensors["state.scale"], "out.extra": x} | answers

    monkeypatch.setitem(CASES, "doubling", Case(run))
    return answers


def write(path, tensors=TENSORS, metadata=None):
    save_file(tensors, path, {"config": "{}"} if metadata is None else metadata)
    return str(path)


def test_a_good_file_passes_whatever_follows_the_case_in_its_name(doubling, tmp_path, capsys):
    assert runner.main([write(tmp_path / "doubling__seed7__big.safetensors")]) == 0
    text = capsys.readouterr().out
    assert "out.y" in text and "[3, 4]" in text and "all 2 tensors ok" in text
    assert "state.scale" not in text and "out.extra" not in text


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("out.y", TENSORS["out.y"] + np.float32(1e-5), "max error above"),
        ("out.y", TENSORS["out.y"].T.copy(), "shape [4, 3], expected [3, 4]"),
        ("out.y", np.where(TENSORS["out.y"] > 1.9, np.nan, TENSORS["out.y"]), "1 of 12 values NaN"),
        ("mid.count", np.int64([4]), "1 of 1 values differ"),
        ("mid.count", np.float32([3]), "dtype float32, expected int64"),
    ],
)
def test_a_broken_bound_fails(doubling, tmp_path, capsys, name, value, says):
    doubling[name] = value
    assert runner.main([write(tmp_path / "doubling.safetensors")]) == 1
    text = capsys.readouterr().out
    assert says in text and "1 of 2 tensors FAILED" in text


def test_a_tensor_that_the_case_leaves_out_fails(doubling, tmp_path, capsys):
    tensors = TENSORS | {"mid.other": np.float32([1.0])}
    assert runner.main([write(tmp_path / "doubling.safetensors", tensors)]) == 1
    assert "mid.other" in (text := capsys.readouterr().out) and "did not produce it" in text


def test_every_way_is_compared_with_what_it_should_be(doubling, monkeypatch, tmp_path, capsys):
    few = {"in.x": TENSORS["in.x"][:1], "out.y": TENSORS["out.y"][:1]}
    found = {"out.y": few["out.y"] + np.float32(1)}
    ways = lambda tensors, config: [("again", CASES["doubling"].run(tensors, config), tensors), ("1 row", found, few)]  # noqa: E731
    monkeypatch.setitem(CASES, "doubling", Case(CASES["doubling"].run, ways=ways))
    assert runner.main([write(tmp_path / "doubling.safetensors")]) == 1
    text = capsys.readouterr().out
    assert "again: mid.count" in text and "again: out.y" in text and "1 of 5 tensors FAILED" in text
    found["out.y"] = few["out.y"]
    assert runner.main([write(tmp_path / "doubling.safetensors")]) == 0
    assert "all 5 tensors ok" in capsys.readouterr().out


def test_an_exception_in_a_case_fails_and_the_other_files_still_run(doubling, tmp_path, capsys):
    without = {name: x for name, x in TENSORS.items() if name != "in.x"}
    bad, good = write(tmp_path / "doubling__bad.safetensors", without), write(tmp_path / "doubling.safetensors")
    assert runner.main([bad, good]) == 1
    text = capsys.readouterr().out
    assert "the case raised" in text and "KeyError: 'in.x'" in text and "all 2 tensors ok" in text


def test_files_that_cannot_be_run(doubling, tmp_path, capsys):
    (tmp_path / "doubling__noise.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "doubling__short.safetensors").write_bytes(b"")
    inputs = {name: x for name, x in TENSORS.items() if not name.startswith("out.")}
    expected = {
        str(tmp_path / "doubling__absent.safetensors"): "no such file",
        str(tmp_path / "doubling__noise.safetensors"): "cannot be read",
        str(tmp_path / "doubling__short.safetensors"): "cannot be read",
        write(tmp_path / "doubling__config.safetensors", metadata={"notes": ""}): "no 'config'",
        write(tmp_path / "doubling__json.safetensors", metadata={"config": "{"}): "cannot be read",
        write(tmp_path / "doubling__list.safetensors", metadata={"config": "[]"}): "is a list, expected an object",
        write(tmp_path / "doubling__inputs.safetensors", inputs): "nothing to compare",
        write(tmp_path / "tripling.safetensors"): "no case 'tripling'; the known ones are",
    }
    for path, says in expected.items():
        assert runner.main([path]) == 1
        text = capsys.readouterr().out
        assert path in text and says in text


def test_an_unknown_case_names_the_known_ones(tmp_path, capsys):
    runner.main([write(tmp_path / "unknown.safetensors")])
    text = capsys.readouterr().out
    assert all(name in text for name in CASES)


def test_other_sizes_seeds_batches_and_cases(tmp_path):
    """A sampler file of other sizes: the case must follow `config` and the tensors."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    config = {
        "time_scale": 250.0,
        "cases": [
            {"name": "flow", "gen": "FlowMatching", "steps": 3, "strength": 2, "interval": [0, 100], "rescale_t": 2},
            {
                "name": "cut",
                "gen": "ShortCut",
                "no_shortcut": False,
                "steps": 5,
                "strength": 1,
                "interval": None,
                "rescale_t": 1,
                "dict": True,
                "solver": "midpoint",
            },
        ],
    }
    inputs = {
        "in.cond": draw(3, 2, 6),
        "in.x0": draw(3, 7, 5),
        "in.x0_dict.a": draw(3, 4, 6),
        "in.x0_dict.b": draw(3, 1, 2),
    }
    outputs = CASES["sampler"].run(inputs, config)
    assert outputs["out.flow.x"].shape == (3, 3, 7, 5) and outputs["out.cut.x.b"].shape == (5, 3, 1, 2)
    path = tmp_path / "sampler__other.safetensors"
    save_file(inputs | outputs, path, {"config": json.dumps(config)})
    report = runner.check_file(path)
    assert report.ok and len(report.rows) == len(outputs)


def test_the_pipeline_is_that_of_the_file():
    """Every size and option of a pipeline's config: none is a preset's."""
    tensors, config = runner.read(DATA / "golden" / "pipeline_tiny.safetensors")
    noise = {name: value for name, value in tensors.items() if name.startswith(case_pipeline_tiny.NOISE)}
    noise["in.ss_noise.shape"] = np.zeros((1, 8**3, 5), np.float32)
    config["ss_flow"] |= {"model_channels": 40, "cond_channels": 32, "num_blocks": 3, "num_heads": 4, "resolution": 8}
    config["ss_decoder"] |= {"channels": [16, 12, 8, 6], "latent_channels": 5, "num_res_blocks": 2}
    config["slat_flow"] |= {"in_channels": 6, "out_channels": 6, "cond_channels": 32, "io_block_channels": [14]}
    representation = config["slat_decoder_gs"]["representation_config"] | {"num_gaussians": 7}
    config["slat_decoder_gs"] |= {"latent_channels": 6, "window_size": 4, "representation_config": representation}
    config["dino"] |= {"embed_dim": 32, "depth": 1, "input_size": 70, "img_size": 70}
    config["pointpatch"] |= {"patch_size": 4}
    config |= {"steps": {"ss": 2, "slat": 3}, "use_stage1_distillation": True, "downsample_ss_dist": 2, "preprocess_size": 70}
    config |= {"slat_mean": [0.5] * 6, "slat_std": [2.0] * 6, "slat_cfg_strength": 3, "cfg_interval": [100, 400]}
    found = case_pipeline_tiny.config_of(config, noise)
    flow, decoder, slat, gaussians = found.ss_generator, found.ss_decoder, found.slat_generator, found.slat_decoder_gs
    assert (flow.model_channels, flow.num_blocks, flow.num_heads, flow.latent_mapping["shape"]) == (40, 3, 4, (5, 512))
    assert (decoder.resolution, decoder.grid, decoder.num_res_blocks) == (8, 64, 2)
    assert (slat.in_channels, slat.widths) == (6, (14, 24)) and found.slat_mean == (0.5,) * 6
    assert (gaussians.window_size, gaussians.representation.num_gaussians, gaussians.out_channels) == (4, 7, 98)
    assert found.ss_condition_embedder.rows["pointmap"] == slice(4 * 26, 4 * 26 + 64)
    assert found.slat_condition_embedder.rows["rgb_image"] == slice(30, 60)
    assert (found.ss_sampling.steps, found.ss_sampling.strength) == (2, 0)  # a distilled model is not guided
    assert (found.slat_sampling.steps, found.slat_sampling.strength, found.slat_sampling.interval) == (3, 3, (100, 400))
    assert (found.preprocessing.size, found.prune_distance) == (70, 2)
    unguided = case_pipeline_tiny.config_of(config | {"cfg_interval": None}, noise)
    assert unguided.slat_sampling.strength == 0


def test_command_line():
    good = str(DATA / "golden" / "sampler.safetensors")
    assert (runner.main([good]), runner.main([good, "absent.safetensors"])) == (0, 1)
    with pytest.raises(SystemExit, match="2"):
        runner.main([])
    command = [sys.executable, "-m", "tests.golden", good, "absent.safetensors"]
    assert subprocess.run(command, cwd=DATA.parents[1], capture_output=True).returncode == 1
