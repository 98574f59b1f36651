"""Runs into a folder: what is written when, the same bytes after an interruption, other options, what earlier runs left."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from sam3d_tvm import cli, outputs
from sam3d_tvm.notices import heard_by
from sam3d_tvm.pipeline import Pipeline, Run
from sam3d_tvm.run_folder import RunFolder, check_writable
from sam3d_tvm.runs import generate_into
from sam3d_tvm.structure import STAGES, Structure, differences
from sparse_ops.deploy.files import save_safetensors
from tests.sam3d_tvm.tiny_pipeline import disc_photo, tiny_artifacts

QUICK = {"steps": 1, "formats": ("ply", "mesh.ply"), "seed": 3}
FIRST = {"structure.safetensors", "pose.json", "run.json"}


def small_overview(gaussians, mesh, *rest, **options) -> Image.Image:
    """In place of views.png, which takes seconds: it says of what it is."""
    return Image.new(
        "RGB", (1 if gaussians is None else len(gaussians) % 99 + 2, 1 if mesh is None else len(mesh.faces) % 99 + 2)
    )


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr(outputs, "overview", small_overview)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny_artifacts())


@pytest.fixture(scope="module")
def masks() -> list[np.ndarray]:
    mask = disc_photo()[..., 3] > 0
    return [mask, np.roll(mask, 10, 1)]


@pytest.fixture(scope="module")
def whole(pipeline, tmp_path_factory) -> Path:
    """A run that nothing interrupted; tests change copies."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "overview", small_overview)
        run(pipeline, folder)
    return folder


def run(pipeline, folder: Path, masks=(), stop: str | None = None, **options) -> list[str]:
    """The stages that a run went through, in order. `stop`: the one at whose beginning it is interrupted."""
    stages: list[str] = []

    def on_progress(progress) -> None:
        if progress.stage not in stages:
            stages.append(progress.stage)
        if progress.stage == stop:
            raise KeyboardInterrupt

    image = options.pop("image", disc_photo()[..., :3] if masks else disc_photo())
    options = QUICK | options | {"on_progress": on_progress, "scene": len(masks) > 1}
    if stop is None:
        generate_into(pipeline, folder, image, masks, **options)
    else:
        with pytest.raises(KeyboardInterrupt):
            generate_into(pipeline, folder, image, masks, **options)
    return stages


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_every_file_is_written_as_soon_as_it_is_ready(pipeline, tmp_path):
    there = {}

    def on_progress(progress) -> None:
        if progress.done == 0:
            there[progress.stage] = {path.name for path in tmp_path.iterdir()}
            if progress.stage == "gaussians":
                with safe_open(tmp_path / "structure.safetensors", "np") as file:
                    there["tensors"] = set(file.keys())

    (result,), written = generate_into(pipeline, tmp_path, disc_photo(), on_progress=on_progress, **QUICK)
    assert there["voxels"] == set() and there["condition of the latents"] == there["latents"] == FIRST
    assert there["tensors"] == {"coords", "points", "rotation", "translation", "scale", "latents"}
    assert there["mesh"] == FIRST | {"splat.ply"} and there["pictures"] == there["mesh"] | {"mesh.ply"}
    assert {path.name for path in tmp_path.iterdir()} == there["pictures"] | {"views.png"}
    assert {path.name for path in written} == (there["pictures"] | {"views.png"}) - {"run.json"}
    assert result.gaussians is not None and result.mesh is not None


@pytest.mark.parametrize(
    ("stop", "begins_with"),
    [
        ("structure", "condition of the structure"),
        ("condition of the latents", "condition of the latents"),
        ("latents", "condition of the latents"),
        ("gaussians", "gaussians"),
        ("mesh", "gaussians"),
        ("pictures", "gaussians"),
    ],
)
def test_a_run_that_is_taken_up_comes_to_the_same_bytes(pipeline, whole, tmp_path, stop, begins_with):
    out = tmp_path / "out"
    run(pipeline, out, stop=stop)
    assert (out / "splat.ply").exists() == (stop in ("mesh", "pictures")) and out.exists() == (stop != "structure")
    written = times(out)
    assert run(pipeline, out, resume=True)[:2] == ["image", begins_with]
    assert contents(out) == contents(whole)
    if stop == "mesh":  # what was whole was not written again
        assert written[out / "splat.ply"] == times(out)[out / "splat.ply"]


def test_a_run_that_is_whole_is_only_looked_at(pipeline, whole):
    before = times(whole)
    assert run(pipeline, whole, resume=True) == ["image", "pictures"]
    assert times(whole) == before


def test_a_file_that_is_missing_or_changed_is_written_again(pipeline, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "mesh.ply").unlink()
    with open(out / "splat.ply", "r+b") as file:
        file.write(b"XYZ")
    assert run(pipeline, out, resume=True) == ["image", "gaussians", "mesh", "pictures"]
    assert contents(out) == contents(whole)


def test_other_formats_are_added(pipeline, whole, tmp_path):
    run(pipeline, tmp_path / "all", formats=("ply", "mesh.ply", "stl", "splat"))
    out = shutil.copytree(whole, tmp_path / "out")
    assert run(pipeline, out, resume=True, formats=("stl", "splat")) == ["image", "gaussians", "mesh", "pictures"]
    assert contents(out) == contents(tmp_path / "all")
    # A picture of both, where there was one of the mesh alone.
    run(pipeline, tmp_path / "mesh", formats=["mesh.ply"])
    run(pipeline, tmp_path / "mesh", formats=["ply"], resume=True)
    assert contents(tmp_path / "mesh") == contents(whole)


def test_a_texture_is_a_stage_and_belongs_to_its_options(pipeline, tmp_path):
    options = {"formats": ("textured.glb", "textured.obj", "mesh.ply"), "triangles": 300, "texture_size": 64}
    texture = {"textured.glb", "textured.obj", "textured.mtl", "textured.png"}
    assert run(pipeline, tmp_path / "one", **options)[-3:] == ["mesh", "texture", "pictures"]
    first = contents(tmp_path / "one")
    assert set(first) == FIRST | texture | {"mesh.ply", "views.png"}
    # Interrupted before the texture, and taken up again; only what is lacking is baked.
    run(pipeline, tmp_path / "two", stop="texture", **options)
    assert not (tmp_path / "two" / "textured.png").exists()
    assert "texture" in run(pipeline, tmp_path / "two", resume=True, **options)
    assert contents(tmp_path / "two") == first
    assert run(pipeline, tmp_path / "two", resume=True, **options) == ["image", "pictures"]
    (tmp_path / "two" / "textured.mtl").unlink()
    assert "texture" in run(pipeline, tmp_path / "two", resume=True, **options)
    assert contents(tmp_path / "two") == first
    # Of another size: new files in place of the old ones, the others as they were.
    assert "texture" in run(pipeline, tmp_path / "two", resume=True, **options | {"texture_size": 32})
    other = contents(tmp_path / "two")
    assert set(other) == set(first) and {name for name in first if first[name] != other[name]} == {
        *(texture - {"textured.mtl"} - ({"textured.obj"} if first["textured.obj"] == other["textured.obj"] else set())),
        "run.json",
    }
    with pytest.raises(ValueError, match="triangles: expected an integer of at least 4, given 1"):
        run(pipeline, tmp_path / "none", **options | {"triangles": 1})
    assert not (tmp_path / "none").exists()


def test_from_voxels_alone_to_all(pipeline, whole, tmp_path):
    assert "latents" not in run(pipeline, tmp_path, stage1_only=True)
    assert {path.name for path in tmp_path.iterdir()} == FIRST | {"voxels.png"}
    assert run(pipeline, tmp_path, resume=True, stage1_only=True) == ["image", "pictures"]
    assert "structure" not in run(pipeline, tmp_path, resume=True)
    assert contents(tmp_path) == contents(whole)
    assert run(pipeline, tmp_path, resume=True, stage1_only=True) == ["image", "pictures"]
    assert contents(tmp_path) == contents(whole)


OTHER_PHOTO = np.roll(disc_photo(), 1, 0)
POINTS = np.dstack([*np.float32(np.mgrid[24:-24:-1, 32:-32:-1])[::-1] / 32, np.full((48, 64), 2, np.float32)])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": 4}, "seed 3, given 4"),
        ({"steps": 2}, "steps 1, given 2; slat_steps 1, given 2"),
        ({"slat_steps": 2}, "slat_steps 1, given 2"),
        ({"guidance": 3.0}, r"guidance 7\.0, given 3\.0"),
        ({"slat_guidance": 3.0}, r"slat_guidance 1\.0, given 3\.0"),
        ({"shortcut": True}, "shortcut False, given True"),
        ({"image": OTHER_PHOTO}, r"image [0-9a-f]{8}\.\.\., given [0-9a-f]{8}\.\.\.; mask [0-9a-f]{8}\.\.\., given"),
        ({"pointmap": POINTS}, r"pointmap none, given [0-9a-f]{8}\.\.\."),
    ],
)
def test_a_run_of_other_options_is_not_taken_up(pipeline, whole, monkeypatch, options, says):
    monkeypatch.setattr(type(pipeline.artifacts), "load", lambda self, name: pytest.fail("a model was loaded"))
    before = times(whole)
    with pytest.raises(ValueError, match=f"resume: expected the options of the run that is there: {says}"):
        run(pipeline, whole, resume=True, **options)
    assert times(whole) == before


def test_a_run_of_other_models_is_not_taken_up(pipeline, whole, monkeypatch):
    artifacts = tiny_artifacts()
    other = type(artifacts)(artifacts.folder)
    other.keys = other.keys | {"ss_decoder": {"code": "another", "weights": "other ones"}}
    with pytest.raises(ValueError, match=r"ss_decoder [0-9a-f]{8}\.\.\., given"):
        run(Pipeline(other), whole, resume=True)


def test_a_decoder_more_or_less_is_no_difference():
    ours = {"decoders": {"slat_decoder_gs": "a", "slat_decoder_mesh": "b"}}
    assert differences(ours, {"decoders": {"slat_decoder_gs": "a"}}, STAGES) == ""
    assert differences({"decoders": {"slat_decoder_gs": "a"}}, ours, STAGES) == ""
    assert differences(ours, {"decoders": {"slat_decoder_gs": "c"}}, STAGES) == "slat_decoder_gs c, given a"


def test_options_of_latents_may_change_before_there_are_any(pipeline, tmp_path):
    run(pipeline, tmp_path / "whole", slat_steps=2)
    run(pipeline, tmp_path / "out", stop="latents")
    run(pipeline, tmp_path / "out", slat_steps=2, resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_from_the_structure_of_another_run(pipeline, whole, tmp_path):
    told = []
    with heard_by(told.append):
        # All that an uninterrupted run comes to: both generators are skipped.
        stages = run(pipeline, tmp_path / "same", from_structure=whole / "structure.safetensors")
        assert stages == ["image", "gaussians", "mesh", "pictures"] and told == []
        same, files = contents(tmp_path / "same"), contents(whole)
        counted = json.loads(files.pop("run.json"))
        assert json.loads(same.pop("run.json")) | {"evaluations": counted["evaluations"]} == counted and same == files
        # Other latents of the same voxels.
        stages = run(pipeline, tmp_path / "other", from_structure=whole, seed=4)
        assert "structure" not in stages and "latents" in stages
        assert told == ["structure: its latents are made anew, as they are of other options: seed 3, given 4"]
        run(pipeline, tmp_path / "photo", from_structure=whole, image=OTHER_PHOTO, formats=("ply",))
        assert "structure: its voxels and pose were made from another mask" in told
    first, second = (Structure.load(tmp_path / name / "structure.safetensors") for name in ("same", "other"))
    np.testing.assert_array_equal(first.coords, second.coords)
    assert not np.array_equal(first.latents, second.latents)
    # And such a run is taken up.
    before = contents(tmp_path / "other")
    (tmp_path / "other" / "mesh.ply").unlink()
    run(pipeline, tmp_path / "other", from_structure=whole, seed=4, resume=True)
    assert contents(tmp_path / "other") == before


def test_a_structure_that_nothing_more_is_known_of(pipeline, whole, tmp_path):
    """Such as one that a program of the user's has put together."""
    made = replace(Structure.load(whole / "structure.safetensors"), made_with={}, latents=None)
    made.save(tmp_path / "mine.safetensors")
    run(pipeline, tmp_path / "out", from_structure=tmp_path / "mine.safetensors")
    for name in ("splat.ply", "mesh.ply", "pose.json"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes(), name
    assert run(pipeline, tmp_path / "out", from_structure=tmp_path / "mine.safetensors", resume=True) == ["image", "pictures"]
    with pytest.raises(ValueError, match="from_structure"):
        run(pipeline, tmp_path / "out", resume=True)


def test_finished_objects_of_a_scene_are_kept(pipeline, masks, tmp_path):
    run(pipeline, tmp_path / "whole", masks)
    out = tmp_path / "out"
    run(pipeline, out, masks, stop="object 2: latents")
    before = times(out / "object_1")
    stages = run(pipeline, out, masks, resume=True)
    assert {stage for stage in stages if stage.startswith("object 1")} == {
        f"object 1: {name}"
        for name in ("image", "pictures", "gaussians", "mesh")  # for the scene
    }
    assert "object 2: structure" not in stages and times(out / "object_1") == before
    assert contents(out) == contents(tmp_path / "whole")
    assert not [stage for stage in run(pipeline, out, masks, resume=True) if not stage.endswith(("image", "pictures"))]
    # From the structures of a scene, too.
    run(pipeline, tmp_path / "again", masks, from_structure=out)
    assert contents(tmp_path / "again") == contents(out)
    with pytest.raises(ValueError, match="from_structure: expected the folder of a run of several objects"):
        run(pipeline, tmp_path / "more", masks, from_structure=out / "object_1" / "structure.safetensors")


def test_no_object_of_an_earlier_run_stays_beside_new_ones(pipeline, whole, masks, tmp_path):
    run(pipeline, tmp_path, masks)
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "object_2" / "mine.txt").write_text("mine")
    (tmp_path / "object_1" / "splat.ply").write_bytes(b"edited since")
    run(pipeline, tmp_path)
    foreign = {"mine.txt", "object_2/mine.txt", "object_1/splat.ply"}
    found = contents(tmp_path)
    assert found.keys() == contents(whole).keys() | foreign and found["object_1/splat.ply"] == b"edited since"
    assert {name: data for name, data in found.items() if name not in foreign} == contents(whole)
    # And the other way.
    for name in foreign:
        (tmp_path / name).unlink()
    run(pipeline, tmp_path, masks, formats=("ply",))
    assert {name.split("/")[0] for name in contents(tmp_path)} == {"object_1", "object_2", "scene_splat.ply", "run.json"}


def test_an_earlier_run_stays_until_something_is_written(pipeline, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    run(pipeline, out, stop="voxels", seed=4)
    assert contents(out) == contents(whole)
    run(pipeline, out, stop="latents", seed=4)
    assert contents(out).keys() == FIRST


def test_names_of_files_lead_nowhere_else(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    digest = "0" * 64
    entry = {"bytes": 4, "sha256": digest, "of": ""}
    out = tmp_path / "out"
    out.mkdir()
    files = dict.fromkeys(("../mine.txt", str(tmp_path / "mine.txt"), "..", "", "run.json"), entry)
    (out / "run.json").write_text(json.dumps({"format": 1, "files": files, "objects": ["..", "object_1/..", "object_0"]}))
    folder = RunFolder(out, resume=True)
    assert folder.names == {"": []}
    RunFolder(out).write("new.txt", lambda path: path.write_text("new"))
    assert contents(tmp_path).keys() == {"mine.txt", "out/new.txt", "out/run.json"}


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"name": "of another program"}', "[" * 100_000])
def test_the_run_json_of_another_program_is_not_touched(pipeline, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"output: expected no run\.json that this program has not written"):
        run(pipeline, tmp_path)
    assert contents(tmp_path) == {"run.json": text.encode()}


def test_a_folder_is_tried_and_left_as_it_was(tmp_path):
    check_writable(tmp_path)
    check_writable(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="output: expected a folder, given"):
            check_writable(path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a folder")
def test_a_folder_that_cannot_be_made_is_said_before_any_work(pipeline, monkeypatch):
    monkeypatch.setattr(type(pipeline.artifacts), "load", lambda self, name: pytest.fail("a model was loaded"))
    with pytest.raises(OSError, match=r"'/proc/nowhere/out'"):
        run(pipeline, Path("/proc/nowhere/out"))


def test_no_voxel_is_a_failure_of_the_first_stage_too(pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Run, "voxels", lambda self, shape: (np.zeros((0, 4), np.int32), np.ones(1, np.int64)))
    for stage1_only in (True, False):
        with pytest.raises(ValueError, match="structure: no voxel is occupied"):
            run(pipeline, tmp_path / "out", stage1_only=stage1_only)
    Image.fromarray(disc_photo()).save(tmp_path / "photo.png")
    command = [
        "generate",
        tmp_path / "photo.png",
        "--artifacts",
        tiny_artifacts().folder,
        "--steps",
        "1",
        "-o",
        tmp_path / "out",
    ]
    for option in ([], ["--stage1-only"]):
        assert cli.main([*map(str, command), *option]) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: structure: no voxel is occupied: try another seed")
    assert not (tmp_path / "out").exists()


# Each changes arrays and metadata, and is said so.
DAMAGED = {
    "no pose": (lambda a, m: a.pop("scale"), "expected scale"),
    "other coordinates": (lambda a, m: a.update(coords=a["points"]), r"coords: expected int32 \[N, 4\]"),
    "beyond the grid": (lambda a, m: a["coords"].__setitem__((0, 1), 64), "coords: expected x from 0 to 63"),
    "a voxel twice": (lambda a, m: a["coords"].__setitem__(1, a["coords"][0]), "every voxel once"),
    "latents that are NaN": (lambda a, m: a["latents"].__setitem__((0, 0), np.nan), "latents: expected finite"),
    "fewer latents": (lambda a, m: a.update(latents=a["latents"][1:]), r"latents: expected float32 \["),
    "a turn that is none": (lambda a, m: a["rotation"].__setitem__(0, 3), "rotation: expected unit quaternions"),
    "a scale of four": (lambda a, m: a.update(scale=a["rotation"]), r"scale: expected float32 \[3\]"),
    "no grid": (lambda a, m: m.pop("resolution"), "expected a resolution from 1 to 1024"),
    "a huge grid": (lambda a, m: m.update(resolution="9" * 9), "expected a resolution from 1 to 1024"),
    "another grid": (lambda a, m: m.update(resolution="128"), "structure: expected voxels on a grid of 64"),
    "options that are none": (lambda a, m: m.update(made_with="[1]"), "made_with: expected tables"),
    "options without end": (lambda a, m: m.update(made_with="[" * 10**5), "structure '"),
    "other latents": (lambda a, m: a.update(latents=a["latents"][:, :3].copy()), "expected latents of 8 channels"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_structures_that_are_none(pipeline, whole, tmp_path, what):
    with safe_open(whole / "structure.safetensors", "np") as file:
        arrays, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    change, says = DAMAGED[what]
    change(arrays, metadata)
    save_safetensors(tmp_path / "structure.safetensors", arrays, metadata)
    with pytest.raises(ValueError, match=says):
        run(pipeline, tmp_path / "out", from_structure=tmp_path / "structure.safetensors")
    assert not (tmp_path / "out").exists()


def test_a_structure_that_is_no_file(pipeline, whole, tmp_path):
    (tmp_path / "half.safetensors").write_bytes((whole / "structure.safetensors").read_bytes()[:-5])
    for path in (tmp_path / "half.safetensors", tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(ValueError, match=f"structure '{tmp_path}"):
            run(pipeline, tmp_path / "out", from_structure=path)


# The command line with pictures as small as here, and, if asked for, a limit for the size of files, which is as good as a disk
# that is full.
COMMAND = f"""
from __future__ import annotations
from PIL import Image
{inspect.getsource(small_overview)}
import resource, signal, sys
from sam3d_tvm.tvm_without_torch import import_tvm
import_tvm()
from sam3d_tvm import cli, outputs
outputs.overview = small_overview
if sys.argv[1] != "0":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
raise SystemExit(cli.main(sys.argv[2:]))
"""


def command(tmp_path: Path, *options: str, limit: int = 0) -> subprocess.Popen:
    Image.fromarray(disc_photo()).save(tmp_path / "photo.png")
    argv = [sys.executable, "-c", COMMAND, str(limit), "generate", str(tmp_path / "photo.png"), *options]
    argv += ["--artifacts", str(tiny_artifacts().folder), "--steps", "1", "--seed", "3", "--formats", "ply,mesh.ply"]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_process_is_taken_up(whole, tmp_path):
    process = command(tmp_path, "-o", str(tmp_path / "out"))
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "splat.ply" not in contents(tmp_path / "out")
    process = command(tmp_path, "--resume", str(tmp_path / "out"))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "structure ..." not in err, err
    found = {name: data for name, data in contents(tmp_path / "out").items() if not name.endswith(".tmp")}
    assert found == contents(whole)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of the size of files")
def test_a_disk_that_is_full_when_the_mesh_comes(whole, tmp_path):
    sizes = {path.name: path.stat().st_size for path in whole.iterdir()}
    limit = sizes["mesh.ply"] - 1
    assert all(size < limit for name, size in sizes.items() if name != "mesh.ply")
    process = command(tmp_path, "-o", str(tmp_path / "out"), limit=limit)
    _, err = process.communicate(timeout=120)
    out = tmp_path / "out"
    assert process.returncode == 1, err
    note, error = err.splitlines()[-2:]
    assert note == f"note: what is written stays: go on with the same options and --resume {out}"
    assert error.startswith("error: [Errno ") and str(out / "mesh.ply") in error and ".tmp" not in error
    assert contents(out).keys() == FIRST | {"splat.ply"}
    process = command(tmp_path, "--resume", str(out))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert contents(out) == contents(whole)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of the size of files")
def test_a_disk_that_is_full_is_found_out_before_any_work(tmp_path):
    process = command(tmp_path, "-o", str(tmp_path / "out"), limit=1000)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and err.startswith("error: [Errno ") and repr(str(tmp_path / "out")) in err, err
    assert err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_output_and_resume_are_one_folder(capsys, tmp_path):
    Image.fromarray(disc_photo()).save(tmp_path / "photo.png")
    argv = [
        "generate",
        str(tmp_path / "photo.png"),
        "--artifacts",
        str(tiny_artifacts().folder),
        "--stage1-only",
        "--steps",
        "1",
    ]
    assert cli.main([*argv, "-o", str(tmp_path / "a"), "--resume", str(tmp_path / "b")]) == 2
    assert "output: expected none beside --resume" in capsys.readouterr().err
    assert cli.main([*argv, "-o", str(tmp_path / "a"), "--resume", os.path.join(tmp_path, "b", "..", "a")]) == 0
    assert "note: resume: nothing in " in capsys.readouterr().err
    assert contents(tmp_path / "a").keys() == FIRST | {"voxels.png"}


def test_a_run_of_other_objects_is_not_taken_up(pipeline, whole, masks, tmp_path, monkeypatch):
    out = tmp_path / "scene"
    run(pipeline, out, [*masks, masks[0]], formats=("ply",), stop="object 3: latents")
    single, several = times(whole), times(out)
    monkeypatch.setattr(type(pipeline.artifacts), "load", lambda self, name: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="masks: expected one at most, as the run to be resumed has, given 2"):
        run(pipeline, whole, masks, resume=True)
    for fewer in ((), masks[:1], masks):
        says = f"masks: expected at least 3, as the run to be resumed has, given {len(fewer) or 1}"
        with pytest.raises(ValueError, match=says):
            run(pipeline, out, fewer, resume=True)
    assert (times(whole), times(out)) == (single, several)


def test_what_is_in_the_way_of_files_is_said_before_any_work(pipeline, whole, masks, tmp_path, monkeypatch):
    monkeypatch.setattr(type(pipeline.artifacts), "load", lambda self, name: pytest.fail("a model was loaded"))
    names = {"mesh.ply": (), "structure.safetensors": (), "object_2/splat.ply": masks, "scene_mesh.ply": masks}
    for name, some in names.items():
        way = tmp_path / name.replace("/", "_") / name
        way.mkdir(parents=True)
        with pytest.raises(ValueError, match=f"output: expected no folder of the name of a file of results, given '{way}'"):
            run(pipeline, tmp_path / name.replace("/", "_"), some)
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "object_2").write_text("mine")
    with pytest.raises(ValueError, match=r"output: expected a folder, given .*object_2' is a file"):
        run(pipeline, tmp_path / "file", masks)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"output: expected a folder, given .*link' is a link to nothing"):
        run(pipeline, tmp_path / "link")
    # The structures of all objects are looked at before the first one is gone on with.
    (tmp_path / "scene").mkdir()
    shutil.copytree(whole, tmp_path / "scene" / "object_1")
    with pytest.raises(ValueError, match=r"structure '.*object_2.structure\.safetensors'"):
        run(pipeline, tmp_path / "out", masks, from_structure=tmp_path / "scene")
    assert not (tmp_path / "out").exists()


def test_arguments_are_looked_at_before_any_object_is_worked_on(pipeline, masks, tmp_path, monkeypatch):
    monkeypatch.setattr(type(pipeline.artifacts), "load", lambda self, name: pytest.fail("a model was loaded"))
    several = [*masks, np.zeros_like(masks[0])]
    for call in (lambda: run(pipeline, tmp_path, several), lambda: pipeline.generate_scene(disc_photo(), several, steps=1)):
        with pytest.raises(ValueError, match="mask: expected pixels above 0"):
            call()
    for formats in ("ply", ("png",)):
        with pytest.raises(ValueError, match="formats: expected"):
            run(pipeline, tmp_path, formats=formats, stage1_only=True)
    assert contents(tmp_path) == {}


def test_masks_may_be_one_array(pipeline, masks, tmp_path):
    results, _ = generate_into(pipeline, tmp_path, disc_photo(), np.stack(masks), steps=1, stage1_only=True)
    assert len(results) == 2
    with pytest.raises(ValueError, match=r"formats: expected those that were asked for when generating, given 'textured\.glb'"):
        _ = results[0].textured
    with pytest.raises(ValueError, match="formats: expected a list of names, given the string 'ply'"):
        results[0].save(tmp_path / "saved", "ply")
