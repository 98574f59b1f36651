"""Artifact folders: used again untouched, packed anew for other weights, taken up again, refused when damaged."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sam3d_tvm.artifacts import (
    MADE_FROM,
    PIPELINE,
    Artifacts,
    CheckpointSource,
    SeededSource,
    compile_artifacts,
    default_folder,
)
from sam3d_tvm.pipeline import Pipeline
from tests.sam3d_tvm.fake_checkpoint import states, write_checkpoint, write_state
from tests.sam3d_tvm.tiny_pipeline import copied_artifacts, disc_photo, tiny_artifacts


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint and its artifacts; tests change copies."""
    folder = tmp_path_factory.mktemp("made")
    checkpoint, artifacts = write_checkpoint(folder / "hf"), copied_artifacts(folder / "artifacts")
    Pipeline.from_checkpoint(checkpoint, artifacts)
    return checkpoint, artifacts


@pytest.fixture
def copies(made, tmp_path) -> tuple[Path, Path]:
    return tuple(shutil.copytree(folder, tmp_path / folder.name) for folder in made)


def compiled(checkpoint: Path, artifacts: Path) -> list[str]:
    """The models that had to be compiled or packed."""
    told = []
    Pipeline.from_checkpoint(checkpoint, artifacts, on_model=lambda *what: told.append(what))
    assert told[-1] == ("", len(told) - 1, len(told) - 1)
    return [name for name, _, _ in told[:-1]]


def test_nothing_is_made_twice(made):
    before = {path: path.stat().st_mtime_ns for path in made[1].rglob("*")}
    assert compiled(*made) == []
    assert {path: path.stat().st_mtime_ns for path in made[1].rglob("*")} == before


def test_changed_weights_are_packed_anew(copies):
    checkpoint, artifacts = copies
    state = states()["ss_decoder"]
    write_state(checkpoint / "ss_decoder.ckpt", state | {"out_layer.2.bias": torch.tensor([0.5])})
    assert compiled(checkpoint, artifacts) == ["ss_decoder"]
    assert compiled(checkpoint, artifacts) == []


def test_an_interrupted_compilation_is_taken_up(copies):
    checkpoint, artifacts = copies

    def interrupt(name, done, total):
        if done == 1:
            raise KeyboardInterrupt

    # As if packed from other weights, so that only weights are packed and nothing is compiled.
    for name in ("ss_decoder", "slat_decoder_gs"):
        shutil.copy(tiny_artifacts().folder / name / MADE_FROM, artifacts / name)
    with pytest.raises(KeyboardInterrupt):
        compile_artifacts(CheckpointSource(checkpoint), artifacts, on_model=interrupt)
    assert compiled(checkpoint, artifacts) == ["slat_decoder_gs"]


def test_needs_no_torch_to_run(made, tmp_path):
    code = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from sam3d_tvm.pipeline import Pipeline
photo = np.full((32, 32, 4), 255, np.uint8)
photo[:8, :, 3] = 0
result = Pipeline.from_artifacts({str(made[1])!r}).generate(photo, steps=1, formats=("ply",), seed=3)
print(len(result.coords))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and int(done.stdout) > 0, done.stderr


def test_a_folder_of_something_else(made, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"artifacts: expected a new folder or one with pipeline.json"):
        Pipeline.from_checkpoint(made[0], tmp_path)
    with pytest.raises(ValueError, match=r"artifacts: expected a folder with pipeline.json"):
        Artifacts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 0}', '{"format": 1}', '{"format": 1, "config": {"a": 1}}'])
def test_a_damaged_description(tmp_path, text):
    (tmp_path / PIPELINE).write_text(text)
    with pytest.raises(ValueError, match=PIPELINE):
        Artifacts(tmp_path)


def test_a_model_is_missing(tmp_path):
    source = tiny_artifacts().folder
    (tmp_path / PIPELINE).write_text(json.dumps(json.loads((source / PIPELINE).read_text())))
    with pytest.raises(ValueError, match=r"ss_decoder.* not compiled yet: compile again"):
        Artifacts(tmp_path)


def test_another_precision(made, tmp_path):
    with pytest.raises(ValueError, match=r"precision: expected .*float32.* given 'float8'"):
        Pipeline.from_checkpoint(made[0], tmp_path / "new", precision="float8")
    assert not (tmp_path / "new").exists()


def test_the_decoder_of_few_gaussians(tmp_path):
    """It is optional, and of the same kind as the other one: here it is that one under its name."""

    class Source(SeededSource):
        def __init__(self):
            super().__init__("tiny")
            self.config = replace(self.config, slat_decoder_gs_4=self.config.slat_decoder_gs)

    folder = copied_artifacts(tmp_path / "artifacts")
    shutil.copytree(folder / "slat_decoder_gs", folder / "slat_decoder_gs_4")
    told = []
    found = compile_artifacts(Source(), folder, on_model=lambda *what: told.append(what))
    assert told == [("", 0, 0)]
    result = Pipeline(found).generate(disc_photo(), steps=1, formats=["ply", "ply4"])
    result.save(tmp_path / "out", ["ply4"])
    np.testing.assert_array_equal(result.few_gaussians.columns(), result.gaussians.columns())
    assert (tmp_path / "out" / "splat_4.ply").is_file() and not (tmp_path / "out" / "splat.ply").exists()


def test_the_default_folder_lies_in_the_cache_that_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSE_OPS_CACHE", str(tmp_path / "where"))
    assert default_folder("some") == tmp_path / "where" / "sam3d_tvm" / "some"
    monkeypatch.setenv("SPARSE_OPS_CACHE", "off")
    with pytest.raises(ValueError, match="artifacts: expected a folder, as SPARSE_OPS_CACHE=off keeps none"):
        default_folder("some")
