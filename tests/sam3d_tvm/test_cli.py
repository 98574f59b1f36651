"""The command line: what commands write, the same bytes for the same options, one line for what is wrong."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from sam3d_tvm import __version__, cli, expected_time
from sam3d_tvm.pipeline import Pipeline
from sam3d_tvm.splat.files import save_splat
from sam3d_tvm.splat.gaussians import Gaussians
from tests.sam3d_tvm.tiny_pipeline import copied_artifacts, tiny_artifacts

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
RUN = "run.json"  # written beside them, and not told of


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
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted((*FILES, RUN))


def test_equal_options_give_equal_bytes_with_any_threads(capsys, quick, tmp_path):
    assert run(capsys, *quick, "-o", tmp_path / "first")[0] == 0
    assert run(capsys, *quick, "-o", tmp_path / "other", "--seed", "1")[0] == 0
    command = [sys.executable, "-m", "sam3d_tvm.cli", *quick, "--output", str(tmp_path / "alone"), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr, done.stderr
    # A note of what is to come, lines of stages, and nothing of libraries.
    note, *lines = done.stderr.splitlines()
    assert note.startswith("note: evaluations: ")
    assert all(line.endswith(" ...") or ": done in 0:00:" in line for line in lines), done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["wrote"] * len(FILES)
    for name in FILES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
        assert (tmp_path / "first" / name).read_bytes() != (tmp_path / "other" / name).read_bytes(), name


def test_several_masks_make_a_scene(capsys, quick, photo, tmp_path):
    columns, rows = np.meshgrid(np.arange(64), np.arange(48))
    np.save(tmp_path / "points.npy", np.stack([columns - 32, rows - 24, np.full_like(rows, 50)], -1) / 50)
    argv = [*quick[:3], photo[1], *quick[3:], "--pointmap", tmp_path / "points.npy"]
    code, out, err = run(capsys, *argv, "-o", tmp_path / "out")
    assert code == 0 and "scene_splat.ply" in out
    assert "axes are those of opencv, x right, y down, z away from the viewer" in err and err.count("note: pointmap") == 1
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["object_1", "object_2", RUN, "scene_splat.ply"]
    code, _, err = run(capsys, *argv, "-o", tmp_path / "named", "--pointmap-axes", "opencv")
    assert code == 0 and "note: pointmap" not in err
    for name in ("scene_splat.ply", "object_1/splat.ply", "object_1/pose.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "named" / name).read_bytes()


def test_without_a_point_map_a_scene_is_written_only_if_asked_for(capsys, quick, photo, tmp_path):
    argv = [*quick[:3], photo[1], *quick[3:]]
    code, out, err = run(capsys, *argv, "-o", tmp_path / "out")
    assert code == 0 and "note: several masks without a point map" in err and "unless asked for by --scene" in err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"object_1", "object_2"} <= names and not [name for name in names if name.startswith("scene_")]
    code, out, err = run(capsys, *argv, "-o", tmp_path / "out", "--scene")
    assert code == 0 and "scene_splat.ply" in out and "they lie over one another in a scene" in err


def test_labels_are_objects(capsys, quick, photo, tmp_path):
    labels = np.zeros((48, 64), np.uint8)
    labels[5:30, 5:25], labels[10:40, 35:60] = 3, 7
    Image.fromarray(labels).save(tmp_path / "labels.png")
    np.save(tmp_path / "depth.npy", np.random.default_rng(0).uniform(1, 2, (48, 64)))
    argv = [quick[0], quick[1], tmp_path / "labels.png", *quick[3:], "-o", tmp_path / "out"]
    code, _, err = run(capsys, *argv)
    assert code == 2 and "given 0, 3, 7; several labels are several objects: generate --labels" in err
    scene = ["--formats", "glb", "--depth", tmp_path / "depth.npy", "--intrinsics", "60,60,32,24"]
    for place in (["--labels", *argv[1:]], [*argv[1:], "--labels"]):  # a file behind it is no label
        code, _, err = run(capsys, argv[0], *place, *scene)
        assert code == 0 and "note: labels: object 1 is label_3, object 2 is label_7" in err
    nodes = trimesh.load(tmp_path / "out" / "scene_mesh.glb").graph.nodes_geometry
    assert set(nodes) == {"label_3", "label_7"}
    code, _, err = run(capsys, *argv, "--labels", "7")
    assert code == 0 and "object 1 is label_7" in err and (tmp_path / "out" / "splat.ply").exists()
    for wrong, says in (("7,9", "labels: expected different ones of those in"), ("7,7", "labels: expected different ones")):
        code, _, err = run(capsys, *argv, "--labels", wrong)
        assert code == 2 and err.startswith(f"error: {says}")
    code, _, err = run(capsys, *quick[:3], photo[1], *quick[3:], "--labels")
    assert code == 2 and err.startswith("error: labels: expected one mask, a picture of labels, given 2")


def test_a_mask_on_raw_pixels_gives_what_an_upright_one_does(capsys, quick, photo, tmp_path):
    with Image.open(photo[0]) as picture, Image.open(photo[1]) as mask:
        exif = Image.Exif()
        exif[0x0112] = 8
        picture.rotate(-90, expand=True).save(tmp_path / "photo.png", exif=exif)  # as a camera on its side has it
        mask.rotate(-90, expand=True).save(tmp_path / "mask.png")
    assert run(capsys, *quick, "-o", tmp_path / "upright")[0] == 0
    argv = [quick[0], tmp_path / "photo.png", tmp_path / "mask.png", *quick[3:], "-o", tmp_path / "raw"]
    code, _, err = run(capsys, *argv)
    assert code == 0 and err.count("turned by 90 degrees counterclockwise as the photo is by its EXIF data") == 1
    for name in FILES:
        assert (tmp_path / "upright" / name).read_bytes() == (tmp_path / "raw" / name).read_bytes(), name
    code, _, err = run(capsys, *argv, "--mask-upright")
    assert code == 2 and "expected 64 x 48 pixels, as the photo has upright, given 48 x 64" in err


def test_evaluations_are_told_before_work_begins(capsys, monkeypatch, photo, tmp_path):
    """And the time that they are expected to take, from the second run on."""
    monkeypatch.setattr(expected_time, "cache_folder", lambda package: tmp_path / package)
    argv = ["generate", *photo, "--artifacts", tiny_artifacts().folder, "--steps", "4", "--slat-steps", "1", "--formats", "ply"]
    code, _, err = run(capsys, *argv, "--structure-cache", "linear", "-o", tmp_path / "first")
    told = "note: evaluations: 6 of the structure, 2 of the latents; time unknown until the first evaluation\n"
    assert code == 0 and err.startswith(told)
    code, _, err = run(capsys, *argv, "--shortcut", "--reuse-guidance", "-o", tmp_path / "second")
    told = (
        r"note: evaluations: 4 of the structure, at most 2 of the latents; at most about 0:00:\d\d by the time of the last run"
    )
    assert code == 0 and re.match(told, err)


def test_stage_one_alone(capsys, quick, tmp_path):
    assert run(capsys, *quick, "--stage1-only", "-o", tmp_path)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"pose.json", "structure.safetensors", "voxels.png", RUN}


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
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, RUN, "mesh.glb", "splat.html"}


def test_compile_takes_up_what_is_there(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("sam3d_tvm.artifacts.compile_model", lambda *args: pytest.fail("compiled again"))
    code, out, _ = run(capsys, "compile", "--preset", "random-tiny", "-o", tiny_artifacts().folder)
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
        (["--quality", "best"], "error: quality: expected one of 'exact', 'normal', 'draft', given 'best'"),
        (["--fast", "--quality", "draft"], "error: fast: expected without --quality, "),
        (["--structure-cache", "cubic"], "error: structure_cache: expected one of 'none', 'linear', 'hermite', 'error', given"),
        (["--latents-cache", ""], "error: latents_cache: expected one of 'none', 'linear', 'hermite', 'error', given ''"),
        (["--fast"], "error: structure_cache: expected at least 4 steps, as fewer are all evaluated, given 1"),
        (
            ["--steps", "4", "--shortcut", "--fast"],
            "error: structure_cache: expected none with shortcut of fewer than 8 steps, given 4 and Linear",
        ),
        (["--formats", "ply,fbx"], "error: formats: expected names among ply, "),
        (["--triangles", "3"], "error: triangles: expected an integer of at least 4, given 3"),
        (["--texture-size", "8"], "error: texture_size: expected an integer of at least 16, given 8"),
        (["--threads", "0"], "error: threads: expected an integer of at least 1, given 0"),
        (["--max-memory", "lots"], "error: max_memory: expected a size such as 8G or 500M, given 'lots'"),
        (["--max-memory", "100M"], "error: max_memory: expected at least "),
        (["--pointmap", "none.npy"], "error: pointmap 'none.npy': expected an array"),
        (["--pointmap-axes", "blender"], "error: pointmap_axes: expected one of 'auto', 'pytorch3d', 'opencv', 'opengl'"),
        (["--intrinsics", "1,2,3,4"], "error: intrinsics: expected with depth alone"),
        (["--depth-scale", "0"], "error: depth_scale: expected with depth alone"),
        (["--depth", "none.png", "--intrinsics", "1,2,3,4"], "error: depth 'none.png': expected a picture"),
        (["--preset", "huge"], "error: preset: expected one of 'tiny', 'random-tiny', 'full', given 'huge'"),
        (["--precision", "bfloat16"], "error: precision: expected that of the artifacts, float32, given 'bfloat16'"),
        (["--colour", "red"], "error: No such option: --colour"),
        (["--checkpoint", "none"], "error: checkpoint: expected a folder with pipeline.yaml"),
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
        (
            ["compile", "--preset", "tiny", "--precision", "tf32"],
            "error: precision: expected one of 'float32', 'bfloat16', 'float16', 'int8', 'int7', given 'tf32', which only CUDA",
        ),
        (["compile", "nowhere"], "error: checkpoint: expected a folder with pipeline.yaml"),
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


def test_only_decoders_that_run_count_for_max_memory(capsys, monkeypatch, quick, tmp_path):
    pipeline = Pipeline(tiny_artifacts())
    all_of_it, splat = (max(pipeline.memory(formats=formats).values()) for formats in (["ply", "glb"], ["ply"]))
    assert splat < all_of_it and "slat_decoder_mesh" not in pipeline.memory(formats=["ply"])
    limit = f"{(splat >> 20) + 1}M"
    assert run(capsys, *quick, "--max-memory", limit, "-o", tmp_path)[0] == 0
    code, _, err = run(capsys, *quick, "--formats", "glb", "--max-memory", limit, "-o", tmp_path)
    assert code == 2 and "which slat_decoder_mesh is estimated to take for 16,000 voxels" in err


def test_a_large_photo_counts_before_it_is_read(capsys, monkeypatch, quick, tmp_path):
    """From its header: 100 megapixels, of which nothing is in memory."""
    monkeypatch.setattr("sam3d_tvm.photo.images.load_rgba", lambda *paths: pytest.fail("the photo was read"))
    for name, mode in (("photo.png", "RGB"), ("mask.png", "L")):
        Image.new(mode, (10_000, 10_000)).save(tmp_path / name)
    options = ["--max-memory", "1G", "-o", tmp_path / "out"]
    code, _, err = run(capsys, "generate", tmp_path / "photo.png", tmp_path / "mask.png", *quick[3:], *options)
    assert code == 2 and err.startswith("error: max_memory: expected at least 1.74 GiB, which a photo of this size takes"), err


def test_info_of_damaged_models(capsys, tmp_path):
    folder = copied_artifacts(tmp_path / "artifacts")
    (folder / "ss_decoder" / "library.so").unlink()
    os.truncate(folder / "ss_generator" / "parameters.safetensors", 1000)
    code, _, err = run(capsys, "info", folder)
    assert code == 2 and err.count("\n") == 1
    assert "ss_decoder/library.so is missing" in err and "ss_generator/parameters.safetensors has 1,000 bytes" in err


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"sam3d-tvm {__version__}\n", "")
    done = subprocess.run([sys.executable, "-m", "sam3d_tvm", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"sam3d-tvm {__version__}\n", "")


@pytest.fixture(scope="module")
def structure(photo, tmp_path_factory) -> Path:
    """What `generate --stage1-only` writes."""
    folder = tmp_path_factory.mktemp("structure") / "out"
    options = ["--artifacts", str(tiny_artifacts().folder), "--steps", "1", "--stage1-only", "-o", str(folder)]
    assert cli.main(["generate", *map(str, photo), *options]) == 0
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="no such shell")
@pytest.mark.parametrize("redirect", ["2>&-", "<&- >&- 2>&-", "2>&1 | head -1", "> /dev/full 2>&1"])
def test_streams_that_nobody_reads_end_nothing(quick, structure, tmp_path, redirect):
    """Nor do files that are opened get the number of a stream that is closed, and what libraries print there."""
    argv = [sys.executable, "-m", "sam3d_tvm", *quick, "--stage1-only", "-o", str(tmp_path / "out")]
    script = f"{shlex.join(argv)} {redirect}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in structure.iterdir()
    }


@pytest.mark.skipif(sys.platform == "win32", reason="no such shell")
def test_help_that_nobody_reads(tmp_path):
    script = f"{sys.executable} -m sam3d_tvm generate --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


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


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_every_option(capsys, monkeypatch, command):
    """In 80 columns nothing is cut off, and every option says what it is."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, command, "--help")
    assert code == 0 and "…" not in out and max(map(len, out.splitlines())) <= 80
    options = re.findall(r"^│ {1,5}--([a-z0-9-]+)([^│]*)│$", out, re.MULTILINE)
    assert ("help" in dict(options)) and all(len(text.split()) >= 4 for _, text in options), options


def test_the_installed_command_is_this_one():
    project = (Path(cli.__file__).parents[2] / "pyproject.toml").read_text()
    assert f'sam3d-tvm = "{cli.__name__}:{cli.main.__name__}"' in project
