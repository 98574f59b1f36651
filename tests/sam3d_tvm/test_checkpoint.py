"""Checkpoint folders in the published layout: what is read, that it runs, and what each way to break one says."""

import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sam3d_tvm import cli
from sam3d_tvm.artifacts import CheckpointSource, compile_model
from sam3d_tvm.checkpoint import OFFSETS, Checkpoint
from sam3d_tvm.config import preset
from sam3d_tvm.models import MODELS
from sam3d_tvm.pipeline import Pipeline
from tests.sam3d_tvm.fake_checkpoint import states, write_checkpoint, write_state, write_yaml
from tests.sam3d_tvm.tiny_pipeline import copied_artifacts, disc_photo, tiny_artifacts

FLOW = ("module", "generator", "backbone", "reverse_fn", "backbone")
TENSOR = "out_layer.2.bias"  # [1], of the structure decoder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "hf")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    """For tests of what is refused: nothing is written into it."""
    return copied_artifacts(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture
def broken(checkpoint, tmp_path) -> Path:
    """A copy to break."""
    return shutil.copytree(checkpoint, tmp_path / "broken")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return disc_photo()


def edit(folder: Path, file: str, path: tuple, value) -> None:
    """Sets the value at `path` of a .yaml file."""
    node = tree = yaml.safe_load((folder / file).read_text())
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    write_yaml(folder / file, tree)


def test_the_config_is_that_of_the_preset(checkpoint):
    assert Checkpoint(checkpoint).config == preset("tiny")


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_those_that_were_written(tmp_path, suffix, dtype):
    found = Checkpoint(write_checkpoint(tmp_path / "hf", suffix, dtype))
    for name in found.config.models:
        stem, _, prefix = MODELS[name].place
        written = {key: value for key, value in states()[stem].items() if key.startswith(prefix)}
        assert found.state(name).keys() == {key.removeprefix(prefix) for key in written} - {OFFSETS}
        for key, value in found.state(name).items():
            np.testing.assert_array_equal(np.asarray(value, np.float32), written[prefix + key].to(dtype).float().numpy())
    expected = states()["slat_decoder_gs"][OFFSETS].to(dtype).float().numpy()
    np.testing.assert_array_equal(found.offset_perturbation("slat_decoder_gs"), expected)


def test_runs_with_its_own_weights_whatever_holds_them(checkpoint, tmp_path, photo):
    options = {"steps": 1, "seed": 3, "formats": ("ply",)}
    first = Pipeline.from_checkpoint(checkpoint, copied_artifacts(tmp_path / "first")).generate(photo, **options)
    other = write_checkpoint(tmp_path / "hf", ".safetensors")
    second = Pipeline.from_checkpoint(other, copied_artifacts(tmp_path / "second")).generate(photo, **options)
    seeded = Pipeline(tiny_artifacts()).generate(photo, **options)
    for name in ("coords", "latents"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.coords, seeded.coords)


@pytest.mark.parametrize("file", ["pipeline.yaml", "slat_generator.yaml", "ss_decoder.ckpt"])
def test_a_file_is_missing(broken, file):
    (broken / file).unlink()
    with pytest.raises(ValueError, match=file):
        Checkpoint(broken)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_truncated_file(broken, artifacts, suffix):
    file = broken / f"ss_decoder{suffix}"
    write_state(file, states()["ss_decoder"])
    edit(broken, "pipeline.yaml", ("ss_decoder_ckpt_path",), file.name)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ValueError, match=f"ss_decoder{suffix}"):
        compile_model(CheckpointSource(broken), artifacts, "ss_decoder")


class _Code:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_pickle_does_not_run(broken, artifacts, tmp_path, save):
    save({TENSOR: _Code(tmp_path / "ran")}, broken / "ss_decoder.ckpt")
    with pytest.raises(ValueError, match=r"ss_decoder\.ckpt: not a file of weights alone"):
        compile_model(CheckpointSource(broken), artifacts, "ss_decoder")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "path"), [("pipeline.yaml", ("_target_",)), ("ss_generator.yaml", (*FLOW, "latent_mapping", "shape", "_target_"))]
)
def test_an_unknown_target_is_not_imported(broken, tmp_path, monkeypatch, file, path):
    (tmp_path / "imported_by_yaml.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nmake = dict\n")
    monkeypatch.syspath_prepend(tmp_path)
    edit(broken, file, path, "imported_by_yaml.make")
    with pytest.raises(ValueError, match=rf"{file}.*_target_ 'imported_by_yaml.make' is not known"):
        Checkpoint(broken)
    assert "imported_by_yaml" not in sys.modules and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "!!python/object/apply:os.mkdir ['ran']\n", ""])
@pytest.mark.parametrize("file", ["pipeline.yaml", "ss_decoder.yaml"])
def test_a_file_that_is_no_mapping(broken, tmp_path, monkeypatch, file, text):
    monkeypatch.chdir(tmp_path)
    (broken / file).write_text(text)
    with pytest.raises(ValueError, match=f"{file}: (not a YAML file|expected names and values)"):
        Checkpoint(broken)
    assert not (tmp_path / "ran").exists()


BROKEN_TENSORS = {
    "extra": ({"extra": torch.ones(1)}, "extra: not a parameter"),
    "missing": ({TENSOR: None}, "missing, expected"),
    "misshapen": ({TENSOR: torch.ones(2)}, r"expected float32 \[1\], given float32 \[2\]"),
    "integers": ({TENSOR: torch.ones(1, dtype=torch.int32)}, "expected float32"),
    "nan": ({TENSOR: torch.tensor([torch.nan])}, "expected finite weights, given NaN or infinity"),
    "infinite": ({TENSOR: torch.tensor([torch.inf])}, "expected finite weights, given NaN or infinity"),
}


@pytest.mark.parametrize("kind", BROKEN_TENSORS)
def test_tensors_that_do_not_fit(broken, artifacts, kind):
    change, message = BROKEN_TENSORS[kind]
    state = {key: value for key, value in (states()["ss_decoder"] | change).items() if value is not None}
    write_state(broken / "ss_decoder.ckpt", state)
    before = {path: path.stat().st_mtime_ns for path in artifacts.rglob("*")}
    with pytest.raises(ValueError, match=message) as caught:
        compile_model(CheckpointSource(broken), artifacts, "ss_decoder")
    assert "ss_decoder.ckpt" in str(caught.value) and next(iter(change)) in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in artifacts.rglob("*")} == before


@pytest.mark.parametrize(
    ("file", "path", "value", "message"),
    [
        ("pipeline.yaml", ("ss_decoder_ckpt_path",), "../ss_decoder.ckpt", "expected files in the checkpoint's folder"),
        ("pipeline.yaml", ("ss_decoder_config_path",), "../ss_decoder.yaml", "expected files in the checkpoint's folder"),
        ("pipeline.yaml", ("pose_decoder_name",), "Other", "expected pose_decoder_name 'ScaleShiftInvariant', given 'Other'"),
        ("pipeline.yaml", ("ss_cfg_strength_pm",), 1.0, "expected ss_cfg_strength_pm 0, given 1.0"),
        ("pipeline.yaml", ("slat_mean",), [0.0] * 7, "slat_mean: expected 8 numbers"),
        ("ss_generator.yaml", (*FLOW, "qk_rms_norm"), False, "qk_rms_norm: expected True, given False"),
        ("ss_decoder.yaml", ("norm_type",), "group", "norm_type: expected 'layer', given 'group'"),
        ("ss_generator.yaml", (*FLOW, "_target_"), ["a"], "is not known"),
        ("pipeline.yaml", ("ss_preprocessor", "normalize_pointmap"), False, "expected normalize_pointmap true, given False"),
        (
            "pipeline.yaml",
            ("ss_preprocessor", "pointmap_normalizer", "clip_beyond_scale"),
            2.0,
            "clip_beyond_scale: expected None, given 2.0",
        ),
        ("pipeline.yaml", ("ss_preprocessor",), "a name", "ss_preprocessor: expected a PreProcessor, given 'a name'"),
        ("ss_generator.yaml", ("module", "condition_embedder", "backbone", "embedder_list"), [[]], "ss_generator.yaml: "),
    ],
)
def test_values_that_no_published_model_has(broken, file, path, value, message):
    edit(broken, file, path, value)
    with pytest.raises(ValueError, match=message) as caught:
        Checkpoint(broken)
    assert file in str(caught.value)


def test_the_command_line_says_it_in_one_line(broken, tmp_path, photo, capsys):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    (broken / "ss_decoder.ckpt").unlink()
    code = cli.main(["generate", str(tmp_path / "photo.png"), "--checkpoint", str(broken), "-o", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert code == 2 and len(error.splitlines()) == 1 and "ss_decoder.ckpt is missing" in error
