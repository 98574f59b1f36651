"""The command line: what the demo writes, the same bytes for the same options, one line for what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from sam3d_tvm import cli
from sam3d_tvm.components import slat_generator
from sam3d_tvm.occupancy import demo_occupancy
from tests.sam3d_tvm.tiny import CONFIG, compiled

QUICK = ["demo", "--preset", "tiny", "--steps", "2"]
FILES = ("latents.safetensors", "voxels.png")


@pytest.fixture
def once(monkeypatch):
    """The tiny model is compiled once for all tests of this process."""

    def compile_model(config, *rest, **options):
        assert config == CONFIG and not rest and not options
        return compiled()

    monkeypatch.setattr(slat_generator, "compile_model", compile_model)


def run(capsys, *argv) -> tuple[int, str, str]:
    code = cli.main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_demo_writes_latents_and_a_picture(once, capsys, tmp_path):
    code, out, err = run(capsys, *QUICK, "-o", tmp_path / "new" / "folder")
    assert code == 0 and err == ""
    for text in ("compile", "weights", "prepare", "sampling", "2 steps, 4 calls", "picture", "19,072 voxels", *FILES):
        assert text in out
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(FILES)
    with safe_open(tmp_path / "new" / "folder" / FILES[0], "np") as file:
        assert file.metadata() == {"preset": "tiny", "seed": "0", "steps": "2", "guidance": "1.0"}
        coords, latents = file.get_tensor("coords"), file.get_tensor("latents")
    np.testing.assert_array_equal(coords, demo_occupancy())
    assert latents.shape == (19072, 8) and latents.dtype == np.float32
    assert np.isfinite(latents).all() and 0.5 < latents.std() < 10
    assert Image.open(tmp_path / "new" / "folder" / FILES[1]).size == (800, 800)


def test_equal_options_give_equal_bytes_with_any_threads(once, capsys, tmp_path):
    first, again, other, weak, alone = (tmp_path / name for name in ("first", "again", "other", "weak", "alone"))
    assert run(capsys, *QUICK, "-o", first)[0] == 0
    assert run(capsys, *QUICK, "-o", again)[0] == 0
    assert run(capsys, *QUICK, "-o", other, "--seed", "1")[0] == 0
    assert run(capsys, *QUICK, "-o", weak, "--guidance", "0")[0] == 0
    # Another process, which compiles for itself, with one thread.
    command = [sys.executable, "-m", "sam3d_tvm.cli", *QUICK, "--output", str(alone), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for name in FILES:
        assert (first / name).read_bytes() == (again / name).read_bytes() == (alone / name).read_bytes()
        assert (first / name).read_bytes() != (other / name).read_bytes()
    assert (first / FILES[0]).read_bytes() != (weak / FILES[0]).read_bytes()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["demo", "--steps", "0"], "error: steps: expected an integer of at least 1, given 0"),
        (["demo", "--steps", "x"], "error: Invalid value for '--steps': "),
        (["demo", "--seed", "-1"], "error: seed: expected an integer of at least 0, given -1"),
        (["demo", "--guidance", "nan"], "error: guidance: expected a finite number, given nan"),
        (["demo", "--preset", "huge"], "error: preset: expected one of 'tiny', 'small', 'full', given 'huge'"),
        (["demo", "--threads", "0"], "error: threads: expected an integer of at least 1, given 0"),
        (["info", "--threads", "0"], "error: threads: expected an integer of at least 1, given 0"),
        (["demo", "--colour", "red"], "error: No such option: --colour"),
        (["dmeo"], "error: No such command 'dmeo'"),
    ],
)
def test_bad_options_are_one_line_and_no_work(capsys, monkeypatch, tmp_path, argv, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    assert code == 2 and err.startswith(says) and err.count("\n") == 1 and "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder(capsys, tmp_path):
    (tmp_path / "taken").write_text("mine")
    for path in (tmp_path / "taken", tmp_path / "taken" / "below"):
        code, _, err = run(capsys, "demo", "-o", path)
        assert code == 2 and err.count("\n") == 1 and "output: expected a folder" in err
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user who may not write everywhere")
def test_a_folder_that_may_not_be_written(once, capsys, tmp_path):
    tmp_path.chmod(0o500)
    code, _, err = run(capsys, *QUICK, "-o", tmp_path / "out")
    assert code == 1 and err.count("\n") == 1 and "Permission denied" in err


def test_stopping_is_no_error_of_the_program(once, capsys, monkeypatch, tmp_path):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(slat_generator.SlatGenerator, "sample_plan", stop)
    code, _, err = run(capsys, *QUICK, "-o", tmp_path / "out")
    assert code == 130 and err == "error: stopped\n"
    assert list(tmp_path.iterdir()) == []


def test_info(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    for text in ("sam3d-tvm", "apache-tvm", "apache-tvm-ffi", "numpy", "target", "instruction set", "threads"):
        assert text in out


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["demo", "--help"]])
def test_help(capsys, argv):
    code, out, _ = run(capsys, *argv)
    assert code == 0 and "sam3d-tvm" in out


def test_the_installed_command_is_this_one():
    project = (Path(cli.__file__).parents[1] / "pyproject.toml").read_text()
    assert f'sam3d-tvm = "{cli.__name__}:{cli.main.__name__}"' in project
