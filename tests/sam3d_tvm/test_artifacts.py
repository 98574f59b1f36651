"""Artifact folders: used again untouched, packed anew for other weights, taken up again, refused when damaged."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sam3d_tvm.artifacts import (
    LOCK,
    MADE_FROM,
    PIPELINE,
    Artifacts,
    CheckpointSource,
    SeededSource,
    begin,
    compile_artifacts,
    default_folder,
)
from sam3d_tvm.lock import locked
from sam3d_tvm.notices import heard_by
from sam3d_tvm.pipeline import Pipeline
from sparse_ops.deploy.component import LIBRARY, MANIFEST, PARAMETERS, Component
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


def test_they_say_whether_weights_are_random(tmp_path):
    """Of a preset they are, of a checkpoint they are not."""
    assert tiny_artifacts().random_weights
    for source, random in ((SeededSource("random-tiny"), True), (CheckpointSource(write_checkpoint(tmp_path / "hf")), False)):
        folder = begin(source, tmp_path / f"random {random}")
        assert json.loads((folder / PIPELINE).read_text())["random_weights"] is random


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


def damage(folder: Path) -> list[str]:
    """One kind of damage in each of five models, and what is said of it."""
    (folder / "ss_decoder" / LIBRARY).unlink()
    (folder / "ss_generator" / MADE_FROM).unlink()
    shutil.rmtree(folder / "slat_decoder_gs")
    whole = (folder / "slat_generator" / PARAMETERS).stat().st_size
    os.truncate(folder / "slat_generator" / PARAMETERS, whole - 1)
    (folder / "slat_decoder_mesh" / MANIFEST).unlink()
    os.truncate(folder / "slat_decoder_mesh" / MADE_FROM, 20)
    return [
        "slat_decoder_gs not compiled yet",
        f"ss_decoder/{LIBRARY} is missing",
        f"ss_generator/{MADE_FROM} is missing",
        f"slat_generator/{PARAMETERS} has {whole - 1:,} bytes in place of {whole:,}",
        f"slat_decoder_mesh/{MANIFEST} is missing",
    ]


def test_all_that_is_damaged_is_said_when_they_are_opened(tmp_path):
    folder = copied_artifacts(tmp_path / "artifacts")
    says = damage(folder)
    with pytest.raises(ValueError, match=r"compile again$") as caught:
        Artifacts(folder)
    for text in says:
        assert text in str(caught.value)
    assert "ss_condition_embedder" not in str(caught.value)


@pytest.mark.parametrize("file", [LIBRARY, MANIFEST, PARAMETERS, MADE_FROM])
@pytest.mark.parametrize("what", ["missing", "cut off", "longer"])
def test_every_file_of_a_model_counts(tmp_path, file, what):
    path = copied_artifacts(tmp_path / "artifacts") / "ss_decoder" / file
    data = path.read_bytes()
    path.unlink()
    if what != "missing":
        path.write_bytes(data[:-9] if what == "cut off" else data + b"more")
    with pytest.raises(ValueError, match=f"artifacts: |artifacts .*: ss_decoder/{file} "):
        Artifacts(tmp_path / "artifacts")


def test_what_is_damaged_is_made_again(copies):
    checkpoint, artifacts = copies
    os.truncate(artifacts / "ss_decoder" / PARAMETERS, 1000)
    (artifacts / "slat_decoder_gs" / MADE_FROM).unlink()
    shutil.copytree(tiny_artifacts().folder / "slat_decoder_gs", kept := artifacts.with_name("kept"))
    # So that its code need not be compiled: only the file of the key is lost.
    (artifacts / "slat_decoder_gs" / MADE_FROM).write_bytes((kept / MADE_FROM).read_bytes())
    for name in ("ss_decoder",):
        shutil.rmtree(artifacts / name)
        shutil.copytree(tiny_artifacts().folder / name, artifacts / name)
    assert compiled(checkpoint, artifacts) == ["ss_decoder", "slat_decoder_gs"]
    Artifacts(artifacts)


# Compiles the preset random-tiny, with code that is taken from the folder argv[2] in place of compiling it, into argv[1].
# Prints the model that is next, and those that it made in the end. Where argv[3] names a model it stops before that model takes
# its place.
COMPILE = """
import os, signal, sys
from sam3d_tvm.tvm_without_torch import import_tvm
import_tvm()
from dataclasses import replace
from pathlib import Path
from sam3d_tvm import artifacts
from sparse_ops.deploy import component
from sparse_ops.deploy.component import Component

class Ready:
    def __init__(self, model):
        self.model = model
    def options(self, config):
        return self.model.options(config)
    def compile(self, config, state, name, **options):
        return Component.load(Path(sys.argv[2]) / name).with_parameters(state)
    def __getattr__(self, name):
        return getattr(self.model, name)

real = os.replace
def stop(old, new):
    if Path(new).name == sys.argv[3] and Path(old).suffix == ".tmp":
        print("stopped", flush=True)
        signal.pause()
    real(old, new)

if sys.argv[3:]:
    component.os.replace = stop
artifacts.MODELS = {name: Ready(model) for name, model in artifacts.MODELS.items()}
made = []
done = artifacts.compile_artifacts(
    artifacts.SeededSource("random-tiny", 1), sys.argv[1], on_model=lambda name, n, total: made.append(name)
)
print(",".join(made[:-1]), done.load("slat_decoder_mesh").name, flush=True)
"""
NAMES = ",".join(tiny_names := tuple(SeededSource("random-tiny").config.models))


def compiler(folder: Path, *stop_at: str) -> subprocess.Popen:
    command = [sys.executable, "-c", COMPILE, str(folder), str(tiny_artifacts().folder), *stop_at]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(process: subprocess.Popen) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


def test_processes_that_share_an_empty_cache(tmp_path):
    """One makes all of it, the others find it; what a run reads meanwhile is waited for."""
    processes = [compiler(tmp_path / "cache") for _ in range(2)]
    found = sorted(said(process)[0] for process in processes)
    assert found == [" slat_decoder_mesh\n", f"{NAMES} slat_decoder_mesh\n"]
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {*tiny_names, PIPELINE, LOCK}


def test_a_process_that_is_killed_leaves_the_rest_to_the_next(tmp_path):
    killed = compiler(tmp_path / "cache", "slat_generator")
    assert killed.stdout.readline() == "stopped\n"
    other = compiler(tmp_path / "cache")
    try:
        assert "waiting for another process that compiles into" in other.stderr.readline()
        assert other.poll() is None
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    out, _ = said(other)
    # The model that was whole already takes its place. Those before it are kept.
    assert out == f"{','.join(tiny_names[tiny_names.index('slat_generator') + 1 :])} slat_decoder_mesh\n"
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {*tiny_names, PIPELINE, LOCK}
    Artifacts(tmp_path / "cache")


def test_left_over_folders_of_a_killed_process_are_removed(copies):
    checkpoint, artifacts = copies
    for left in (".ss_decoder.0123456789abcdef.tmp", ".ss_decoder.0123456789abcdef.old"):
        (artifacts / left).mkdir()
        (artifacts / left / LIBRARY).write_bytes(b"half of it")
    (artifacts / ".pipeline.json.0123456789abcdef.tmp").write_text("{")
    (artifacts / ".mine.tmp").mkdir()
    assert compiled(checkpoint, artifacts) == [] and (artifacts / ".mine.tmp").exists()
    shutil.copy(tiny_artifacts().folder / "ss_decoder" / MADE_FROM, artifacts / "ss_decoder")
    assert compiled(checkpoint, artifacts) == ["ss_decoder"]
    assert sorted(path.name for path in artifacts.iterdir() if path.name.startswith(".")) == [LOCK, ".mine.tmp"]


def test_a_run_waits_for_what_is_being_compiled(tmp_path):
    folder, told = copied_artifacts(tmp_path / "artifacts"), []
    (folder / "ss_decoder").rename(tmp_path / "away")
    locks = threading.Event()

    def compile_it() -> None:
        with locked(folder / LOCK):
            locks.set()
            while not told:
                pass
            (tmp_path / "away").rename(folder / "ss_decoder")

    other = threading.Thread(target=compile_it)
    other.start()
    assert locks.wait(60)
    with heard_by(told.append):
        assert Artifacts(folder).load("ss_decoder").name == "ss_decoder"
    other.join()
    assert told == [f"waiting for another process that compiles into {str(folder)!r}"]


def test_a_model_that_is_not_what_it_was(tmp_path):
    opened = Artifacts(copied_artifacts(tmp_path / "artifacts"))
    compile_artifacts(SeededSource("random-tiny", 1), opened.folder)
    with pytest.raises(ValueError, match="ss_decoder is not what it was when they were opened"):
        opened.load("ss_decoder")


REPLACE = """
import sys
from pathlib import Path
from sparse_ops.deploy.component import Component
component = Component.load(sys.argv[2])
for _ in range(int(sys.argv[3])):
    component.save(sys.argv[1])
"""


def test_a_folder_is_replaced_while_others_load_it(tmp_path):
    source = tiny_artifacts().folder / "slat_decoder_gs"
    folder = Component.load(source).save(tmp_path / "shared")
    command = [sys.executable, "-c", REPLACE, str(folder), str(source), "20"]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    loads = 0
    while any(writer.poll() is None for writer in writers):
        Component.load(folder)
        loads += 1
    for writer in writers:
        assert writer.wait() == 0, writer.stderr.read()
    assert loads > 10 and [path.name for path in tmp_path.iterdir()] == ["shared"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user who may not write everywhere")
def test_a_cache_that_is_read_only(made):
    """Complete, it is used as it is."""
    folder = made[1]
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        assert compiled(*made) == []
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)


def test_another_precision(made, tmp_path):
    with pytest.raises(ValueError, match=r"precision: expected .*float32.* given 'float8'"):
        Pipeline.from_checkpoint(made[0], tmp_path / "new", precision="float8")
    assert not (tmp_path / "new").exists()


def test_the_decoder_of_few_gaussians(tmp_path):
    """It is optional, and of the same kind as the other one: here it is that one under its name."""

    class Source(SeededSource):
        def __init__(self):
            super().__init__("random-tiny")
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
