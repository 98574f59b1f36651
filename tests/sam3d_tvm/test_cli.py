"""The command line: what commands write, the same bytes for the same options, one line for what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam3d_tvm import cli
from sam3d_tvm.pipeline import Pipeline
from sam3d_tvm.splat.files import save_splat
from sam3d_tvm.splat.gaussians import Gaussians
from tests.sam3d_tvm.tiny_pipeline import tiny_artifacts

# The command line in a process of its own, where a signal stops it even if a shell has started all this in the background, for
# which it makes every process ignore that signal.
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from sam3d_tvm import cli
print("started", flush=True)
raise SystemExit(cli.main())
"""
FILES = ("pose.json", "splat.ply", "structure.safetensors", "views.png")


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> tuple[Path, Path]:
    """A photo and a mask as files."""
    folder = tmp_path_factory.mktemp("photo")
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8)).save(folder / "photo.png")
    rows, columns = np.ogrid[:48, :64]
    Image.fromarray(((rows - 22) ** 2 + (columns - 30) ** 2 < 200).astype(np.uint8) * 255).save(folder / "mask.png")
    return folder / "photo.png", folder / "mask.png"


@pytest.fixture
def quick(photo) -> list[str]:
    """A command that takes a second."""
    return ["generate", *map(str, photo), "--artifacts", str(tiny_artifacts().folder), "--steps", "1", "--formats", "ply"]


def run(capsys, *argv) -> tuple[int, str, str]:
    code = cli.main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_generate_writes_its_files_and_says_so(capsys, quick, tmp_path):
    code, out, err = run(capsys, *quick, "-o", tmp_path / "new" / "folder", "--verbose")
    assert code == 0 and "error" not in err
    for text in ("structure", "latents", "voxels", "Gaussians", "GiB estimated", "seconds", *FILES):
        assert text in out
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(FILES)


def test_equal_options_give_equal_bytes_with_any_threads(capsys, quick, tmp_path):
    assert run(capsys, *quick, "-o", tmp_path / "first")[0] == 0
    assert run(capsys, *quick, "-o", tmp_path / "other", "--seed", "1")[0] == 0
    command = [sys.executable, "-m", "sam3d_tvm.cli", *quick, "--output", str(tmp_path / "alone"), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for name in FILES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
        assert (tmp_path / "first" / name).read_bytes() != (tmp_path / "other" / name).read_bytes(), name


def test_several_masks_make_a_scene(capsys, quick, photo, tmp_path):
    code, out, _ = run(capsys, *quick[:3], photo[1], *quick[3:], "-o", tmp_path)
    assert code == 0 and "scene_splat.ply" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["object_1", "object_2", "scene_splat.ply"]


def test_stage_one_alone(capsys, quick, tmp_path):
    assert run(capsys, *quick, "--stage1-only", "-o", tmp_path)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"pose.json", "structure.safetensors", "voxels.png"}


def test_interrupting_leaves_nothing_half_written(quick, tmp_path):
    argv = list(quick)
    argv[argv.index("--steps") + 1] = "100000"
    command = [sys.executable, "-c", INTERRUPTIBLE, *argv, "-o", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.endswith("error: stopped\n")
    assert not (tmp_path / "out").exists()


def test_demo_is_the_preset_on_the_photo_that_comes_along(capsys, monkeypatch, tmp_path):
    seen = {}

    def from_preset(name, artifacts, **options):
        seen["preset"] = name
        return Pipeline(tiny_artifacts())

    monkeypatch.setattr(Pipeline, "from_preset", from_preset)
    code, out, _ = run(capsys, "demo", "-o", tmp_path)
    assert code == 0 and seen == {"preset": "tiny"} and "watertight" in out and "not watertight" not in out
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, "mesh.glb", "splat.html"}


def test_compile_takes_up_what_is_there(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("sam3d_tvm.artifacts.compile_model", lambda *args: pytest.fail("compiled again"))
    code, out, _ = run(capsys, "compile", "--preset", "tiny", "-o", tiny_artifacts().folder)
    assert code == 0 and "ss_generator" in out and "MiB" in out


def test_view_writes_pictures_and_a_page(capsys, tmp_path):
    random = np.random.default_rng(0)
    count = 200
    gaussians = Gaussians(
        random.uniform(-0.4, 0.4, (count, 3)),
        random.standard_normal((count, 3)),
        np.full(count, 3.0),
        np.full((count, 3), -4.0),
        random.standard_normal((count, 4)),
    )
    save_splat(tmp_path / "thing.ply", gaussians)
    code, out, _ = run(capsys, "view", tmp_path / "thing.ply", "--views", "2", "--size", "64")
    assert code == 0
    names = {"thing.ply", "thing.html", "thing_view0.png", "thing_view1.png", "thing_views.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert Image.open(tmp_path / "thing_view1.png").size == (64, 64)
    assert "thing.html" in out
    code, _, err = run(capsys, "view", tmp_path / "thing.html")
    assert code == 2 and err.startswith("error: path: expected a .ply file")


def test_bench_counts_all_steps(capsys):
    code, out, _ = run(capsys, "bench", "--artifacts", tiny_artifacts().folder, "--own-voxels", "--json")
    assert code == 0
    costs = {cost["stage"]: cost for cost in json.loads(out)}
    assert costs["structure"]["steps"] == costs["latents"]["steps"] == 8
    stages = [cost for name, cost in costs.items() if name != "in all"]
    assert costs["in all"]["total_seconds"] == pytest.approx(sum(cost["total_seconds"] for cost in stages))
    assert all(cost["total_seconds"] > 0 for cost in stages)
    assert costs["mesh"]["peak_bytes"] is None or costs["mesh"]["peak_bytes"] > 1 << 26


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--steps", "0"], "error: steps: expected an integer of at least 1, given 0"),
        (["--slat-steps", "0"], "error: slat_steps: expected an integer of at least 1, given 0"),
        (["--steps", "x"], "error: Invalid value for '--steps': "),
        (["--seed", "-1"], "error: seed: expected an integer of at least 0, given -1"),
        (["--guidance", "nan"], "error: guidance: expected a finite number, given nan"),
        (["--formats", "ply,fbx"], "error: formats: expected names among ply, "),
        (["--threads", "0"], "error: threads: expected an integer of at least 1, given 0"),
        (["--max-memory", "lots"], "error: max_memory: expected a size such as 8G or 500M, given 'lots'"),
        (["--max-memory", "100M"], "error: max_memory: expected at least "),
        (["--pointmap", "none.npy"], "error: pointmap 'none.npy': expected an array"),
        (["--preset", "huge"], "error: preset: expected one of 'tiny', 'full', given 'huge'"),
        (["--precision", "bfloat16"], "error: precision: expected that of the artifacts, float32, given 'bfloat16'"),
        (["--colour", "red"], "error: No such option: --colour"),
        (["--checkpoint", "none"], "error: checkpoint: expected a folder with pipeline.yaml, given 'none'"),
    ],
)
def test_bad_options_are_one_line_and_no_work(capsys, monkeypatch, tmp_path, quick, argv, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *quick, *argv)
    assert code == 2 and err.startswith(says) and err.count("\n") == 1 and "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["dmeo"], "error: No such command 'dmeo'"),
        (["info", "--threads", "0"], "error: threads: expected an integer of at least 1, given 0"),
        (["info", "nowhere"], "error: artifacts: expected a folder with pipeline.json, given 'nowhere'"),
        (["compile"], "error: checkpoint: expected a checkpoint folder, or --preset, given neither"),
        (["compile", "nowhere"], "error: checkpoint: expected a folder with pipeline.yaml, given 'nowhere'"),
        (["view", "nothing.ply"], "error: path: "),
        (["view", "nothing.ply", "--views", "0"], "error: views: expected an integer of at least 1, given 0"),
        (["generate", "nothing.png", "--preset", "tiny"], "error: image 'nothing.png': expected a picture"),
    ],
)
def test_bad_commands(capsys, monkeypatch, tmp_path, argv, says):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *argv)
    assert code == 2 and err.startswith(says) and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_has_to_be_named_once(capsys, photo, monkeypatch):
    for name in ("SAM3D_CHECKPOINT", "SAM3D_ARTIFACTS"):
        monkeypatch.delenv(name, raising=False)
    code, _, err = run(capsys, "generate", *photo)
    assert code == 2 and err.startswith("error: checkpoint: expected --checkpoint FOLDER")
    code, _, err = run(capsys, "generate", *photo, "--checkpoint", "there", "--preset", "tiny")
    assert code == 2 and err.startswith("error: preset: expected no --checkpoint beside it, given 'there'")


def test_a_file_in_place_of_the_folder(capsys, quick, tmp_path):
    (tmp_path / "taken").write_text("mine")
    for path in (tmp_path / "taken", tmp_path / "taken" / "below"):
        code, _, err = run(capsys, *quick, "-o", path)
        assert code == 2 and err.count("\n") == 1 and "output: expected a folder" in err
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user who may not write everywhere")
def test_a_folder_that_may_not_be_written(capsys, quick, tmp_path):
    tmp_path.chmod(0o500)
    code, _, err = run(capsys, *quick, "-o", tmp_path / "out")
    assert code == 1 and err.count("\n") == 1 and "Permission denied" in err


def test_info(capsys):
    code, out, _ = run(capsys, "info", tiny_artifacts().folder)
    assert code == 0
    for text in (
        "sam3d-tvm",
        "apache-tvm",
        "apache-tvm-ffi",
        "numpy",
        "target",
        "instruction set",
        "threads",
        "slat_generator",
    ):
        assert text in out


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["generate", "--help"], ["demo", "--help"]])
def test_help(capsys, argv):
    code, out, _ = run(capsys, *argv)
    assert code == 0 and "sam3d-tvm" in out


def test_the_installed_command_is_this_one():
    project = (Path(cli.__file__).parents[2] / "pyproject.toml").read_text()
    assert f'sam3d-tvm = "{cli.__name__}:{cli.main.__name__}"' in project
