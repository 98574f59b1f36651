"""Many photos in one process: bytes of `generate`, what fails, what is kept, what is gone on with."""

import csv
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sam3d_tvm import cli
from sam3d_tvm.artifacts import Artifacts
from sam3d_tvm.batch import objects, read_jobs, run_batch
from sam3d_tvm.batch import run as batch_run
from sam3d_tvm.batch.tasks import Row
from sam3d_tvm.pipeline import Pipeline
from sam3d_tvm.run_folder import RunFolder
from sam3d_tvm.runs import generate_into
from tests.sam3d_tvm.batch.photos import contents, write_photo
from tests.sam3d_tvm.tiny_pipeline import tiny_artifacts

ROOT = Path(__file__).parents[3]
FULL = {"steps": 1, "formats": ["ply"]}
FIRST = {"steps": 1, "stage1_only": True}  # a second an object


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny_artifacts())


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three photos, and one that is none between them."""
    for number in range(3):
        write_photo(tmp_path / "photos" / f"p{number}.png", number)
    (tmp_path / "photos" / "p1b.png").write_bytes(b"no picture")
    return tmp_path / "photos"


def run(pipeline, photos, output, **options) -> dict[str, Row]:
    rows = run_batch(pipeline, read_jobs(photos, output), output, **(options or FIRST))
    return {row.name: row for row in rows}


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results.csv").read_text("utf-8").splitlines()))


def computed(monkeypatch) -> list[str]:
    """Fills with the photos of objects whose structure is computed from now on."""
    names, steps = [], Pipeline.steps

    def counted(self, image, mask=None, **options):
        if image and options["resume"] is None:
            names.append(Path(image).stem)
        return steps(self, image, mask, **options)

    monkeypatch.setattr(Pipeline, "steps", counted)
    return names


def test_the_bytes_are_those_of_generate(pipeline, tmp_path):
    photos = write_photo(tmp_path / "photos" / "p2.png").parent
    rows = run(pipeline, photos, tmp_path / "out", **FULL)
    generate_into(pipeline, tmp_path / "alone", photos / "p2.png", [], **FULL)
    alone = contents(tmp_path / "alone")
    del alone["run.json"]  # which has no photo.png
    found = contents(tmp_path / "out" / "p2")
    assert set(found) - set(alone) == {"run.json", "photo.png"} and {name: found[name] for name in alone} == alone
    assert rows["p2"].gaussians == 4 * rows["p2"].voxels and rows["p2"].triangles is None
    assert set(rows["p2"].seconds) >= {"image", "structure", "latents", "gaussians"}


def test_a_bad_photo_is_a_row_and_the_others_go_on(pipeline, photos, tmp_path):
    rows = run(pipeline, photos, tmp_path / "out")
    assert [(row.name, row.status) for row in rows.values()] == [("p0", "ok"), ("p1", "ok"), ("p1b", "failed"), ("p2", "ok")]
    assert "expected a picture" in rows["p1b"].error and rows["p0"].voxels > 0
    assert [row["name"] for row in table(tmp_path / "out")] == list(rows)
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert "3 of 4 objects, 1 failed" in page and './p0/photo.png"' in page and './p0/voxels.png"' in page
    for name in rows["p0"].files:
        assert (tmp_path / "out" / "p0" / name).is_file()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("odd"), ValueError("structure: no voxel is occupied"), OSError("read")]
)
def test_whatever_befalls_an_object_befalls_it_alone(pipeline, photos, tmp_path, monkeypatch, error):
    steps = Pipeline.steps

    def failing(self, image, mask=None, **options):
        if "p1.png" not in str(image):
            return steps(self, image, mask, **options)

        def stages():
            yield "ss_generator"
            raise error

        return stages()

    monkeypatch.setattr(Pipeline, "steps", failing)
    rows = run(pipeline, photos, tmp_path / "out")
    assert {name: row.status for name, row in rows.items()} == {"p0": "ok", "p1": "failed", "p1b": "failed", "p2": "ok"}
    assert rows["p1"].error and table(tmp_path / "out")[1]["error"] == rows["p1"].error


def test_a_full_disk_ends_the_run_and_names_the_file(pipeline, photos, tmp_path, monkeypatch):
    write, full = RunFolder.write, []

    def fails(self, name, write_it, of=""):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.folder / name))
        full.append(name)
        return write(self, name, write_it, of)

    monkeypatch.setattr(RunFolder, "write", fails)
    with pytest.raises(OSError, match=r"No space left on device: '.*p0/pose.json'"):
        run(pipeline, photos, tmp_path / "out")
    monkeypatch.undo()
    begun = computed(monkeypatch)
    assert run(pipeline, photos, tmp_path / "out")["p0"].status == "ok"
    assert begun == ["p1", "p1b", "p2"]  # the structure of p0 was written
    assert contents(tmp_path / "out") == _anew(pipeline, photos, tmp_path)


def _anew(pipeline, photos, tmp_path) -> dict[str, bytes]:
    run(pipeline, photos, tmp_path / "anew")
    return contents(tmp_path / "anew")


def test_what_cannot_be_written_is_found_out_before_any_work(pipeline, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "run_group", lambda *args: pytest.fail("computed"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="expected a folder"):
        run(pipeline, photos, tmp_path / "file" / "out")
    for options, says in (
        ({"formats": ["usdz"]}, "formats: expected names among"),
        ({"seed": -1}, "seed: expected an integer of at least 0"),
        ({"steps": 0}, "steps: expected"),
        ({"max_memory": 1}, "max_memory: expected at least"),
    ):
        with pytest.raises(ValueError, match=says):
            run(pipeline, photos, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_second_run_computes_what_is_new_or_changed(pipeline, photos, tmp_path, monkeypatch):
    first = run(pipeline, photos, tmp_path / "out")
    begun = computed(monkeypatch)
    assert run(pipeline, photos, tmp_path / "out") == first and begun == ["p1b"]  # what failed is tried again

    write_photo(photos / "p1b.png", 9)
    write_photo(photos / "p2.png", 5)
    (photos / "p0.png").rename(photos / "renamed.png")
    (tmp_path / "out" / "p1" / "voxels.png").unlink()
    (tmp_path / "out" / "p1" / "mine.txt").write_text("kept")
    begun.clear()
    rows = run(pipeline, photos, tmp_path / "out")
    assert begun == ["p1b", "p2", "renamed"]  # of p1 a picture was missing, its structure was there
    assert all(row.status == "ok" for row in rows.values()) and rows["renamed"].voxels == first["p0"].voxels
    assert (tmp_path / "out" / "p0" / "voxels.png").is_file()  # a photo that is gone leaves its results, but no row
    assert "p0" not in {row["name"] for row in table(tmp_path / "out")}
    assert (tmp_path / "out" / "p1" / "mine.txt").read_text() == "kept"
    (tmp_path / "out" / "p1" / "mine.txt").unlink()
    anew = _anew(pipeline, photos, tmp_path)
    assert {name: data for name, data in contents(tmp_path / "out").items() if not name.startswith("p0/")} == anew

    begun.clear()
    run(pipeline, photos, tmp_path / "out", **FIRST, seed=7)
    assert begun == ["p1", "p1b", "p2", "renamed"]


def test_other_options_leave_no_old_file(pipeline, tmp_path):
    write_photo(tmp_path / "photos" / "a.png")
    run(pipeline, tmp_path / "photos", tmp_path / "out")
    assert (tmp_path / "out" / "a" / "voxels.png").is_file()
    run(pipeline, tmp_path / "photos", tmp_path / "out", steps=1, formats=["stl"])
    assert {path.name for path in (tmp_path / "out" / "a").iterdir()} == {
        *("record.json", "run.json", "pose.json", "structure.safetensors", "mesh.stl", "views.png", "photo.png")
    }


def test_other_formats_go_on_from_the_structure(pipeline, photos, tmp_path, monkeypatch):
    """Of the first stage alone, then of all, then of other files: the first generator runs once, and bytes are those of a run
    that was asked for these files at once."""
    opened, load = [], Artifacts.load
    monkeypatch.setattr(Artifacts, "load", lambda self, name: opened.append(name) or load(self, name))
    run(pipeline, photos, tmp_path / "out", **FIRST)
    run(pipeline, photos, tmp_path / "out", steps=1, formats=["ply", "stl"])
    run(pipeline, photos, tmp_path / "out", steps=1, formats=["stl", "glb"])
    assert opened.count("ss_generator") == 1 and opened.count("slat_generator") == 1
    run(pipeline, photos, tmp_path / "anew", steps=1, formats=["stl", "glb"])
    assert contents(tmp_path / "out") == contents(tmp_path / "anew")
    run(pipeline, photos, tmp_path / "out", **FIRST)
    run(pipeline, photos, tmp_path / "first", **FIRST)
    assert contents(tmp_path / "out") == contents(tmp_path / "first")


@pytest.mark.parametrize("record", [b"", b"[]", b"{" * 10**5, b'{"digest": 1, "row": {}, "sizes": {"../../x": 1}}'])
def test_a_record_that_is_none_is_no_record(pipeline, tmp_path, record):
    write_photo(tmp_path / "photos" / "a.png")
    first = run(pipeline, tmp_path / "photos", tmp_path / "out")
    (tmp_path / "out" / "a" / "record.json").write_bytes(record)
    again = run(pipeline, tmp_path / "photos", tmp_path / "out")
    assert again["a"].files == first["a"].files and again["a"].status == "ok"


def test_what_is_in_the_way_of_an_object_is_its_problem(pipeline, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "p1").write_text("a file")
    write_photo(photos / "results.csv.png")
    os.mkfifo(photos / "pipe.png")
    rows = run(pipeline, photos, tmp_path / "out")
    assert {name for name, row in rows.items() if row.status == "ok"} == {"p0", "p2"}
    assert "expected none of a file of results" in rows["results.csv"].error and "expected a file" in rows["pipe"].error
    assert (tmp_path / "out" / "p1").read_text() == "a file" and rows["p1"].error


def test_models_are_opened_once_for_all_objects_that_fit(pipeline, photos, tmp_path, monkeypatch):
    opened, load = [], Artifacts.load
    monkeypatch.setattr(Artifacts, "load", lambda self, name: opened.append(name) or load(self, name))
    stages = ["ss_condition_embedder", "ss_generator", "ss_decoder"]
    run(pipeline, photos, tmp_path / "all")
    assert opened == stages
    opened.clear()
    needed = max(pipeline.memory(stage1_only=True).values())
    run(pipeline, photos, tmp_path / "each", **FIRST, max_memory=needed)
    assert opened == 3 * stages  # one object at a time: no room for more
    opened.clear()
    run(pipeline, photos, tmp_path / "two", **FIRST, max_memory=needed + objects.held_bytes(pipeline))
    assert opened == 2 * stages
    assert contents(tmp_path / "all") == contents(tmp_path / "each") == contents(tmp_path / "two")


def test_a_killed_run_goes_on(pipeline, tmp_path, monkeypatch):
    for number in range(2):
        write_photo(tmp_path / "photos" / f"p{number}.png", number)
    script = (
        "import sys\nfrom sam3d_tvm.batch import read_jobs, run_batch\nfrom sam3d_tvm.pipeline import Pipeline\n"
        "say = lambda event: print(event.model, flush=True)\n"
        f"run_batch(Pipeline.from_artifacts({str(tiny_artifacts().folder)!r}), read_jobs({str(tmp_path / 'photos')!r}),"
        f" {str(tmp_path / 'out')!r}, on_event=say, **{FULL!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        seen = []
        while seen.count("ss_decoder") < 2 and (line := process.stdout.readline()):
            seen.append(line.strip())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    (tmp_path / "out" / "p0" / ".splat.ply.0123456789abcdef.tmp").write_bytes(b"half")
    assert seen.count("ss_decoder") == 2 and not (tmp_path / "out" / "p1" / "views.png").exists()
    begun = computed(monkeypatch)
    run(pipeline, tmp_path / "photos", tmp_path / "out", **FULL)
    assert begun == []
    run(pipeline, tmp_path / "photos", tmp_path / "anew", **FULL)
    assert contents(tmp_path / "out") == contents(tmp_path / "anew")


def test_two_runs_with_one_output_take_turns(pipeline, photos, tmp_path):
    with batch_run.locked(tmp_path / "out" / ".lock"):
        command = [sys.executable, "-m", "sam3d_tvm", "batch", str(photos), "-o", str(tmp_path / "out"), "--steps", "1"]
        command += ["--stage1-only", "--artifacts", str(tiny_artifacts().folder)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            while "waiting for another process that writes into" not in (line := process.stderr.readline()):
                assert line, process.wait()
            time.sleep(0.5)
            assert not (tmp_path / "out" / "results.csv").exists()
        except BaseException:
            process.kill()
            raise
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "\x1b" not in err  # a photo is none
    assert "error: 1 of 4 objects failed, see" in err and "p1b: failed: image" in out and "p0: " in out
    assert [row["status"] for row in table(tmp_path / "out")] == ["ok", "ok", "failed", "ok"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "photos: expected a folder, or --csv FILE, given neither"),
        (["photos", "--csv", "list.csv"], "given both"),
        (["empty"], "photos: expected photos and masks as name.png"),
        (["--csv", "none.csv"], "list 'none.csv': "),
        (["photos", "--formats", "usdz"], "formats: expected names among"),
        (["photos"], "checkpoint: expected --checkpoint FOLDER"),
        (["photos", "--preset", "tiny", "--max-memory", "lots"], "max_memory: expected a size"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(capsys, tmp_path, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    write_photo(tmp_path / "photos" / "a.png")
    (tmp_path / "empty").mkdir()
    assert cli.main(["batch", *argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and says in err


def test_a_csv_on_the_command_line(capsys, tmp_path):
    write_photo(tmp_path / "sub" / "a.png")
    (tmp_path / "list.txt").write_text("photo,name,seed\nsub/a.png,first,1\nsub/a.png,second,2\n")
    argv = ["--csv", tmp_path / "list.txt", "-o", tmp_path / "out", "--artifacts", tiny_artifacts().folder]
    assert cli.main(["batch", *map(str, argv), "--steps", "1", "--stage1-only"]) == 0
    first, second = table(tmp_path / "out")
    assert (first["name"], first["seed"], first["photo"]) == ("first", "1", "sub/a.png") and second["seed"] == "2"
    structures = [(tmp_path / "out" / name / "structure.safetensors").read_bytes() for name in ("first", "second")]
    assert structures[0] != structures[1]
    assert "wrote" in capsys.readouterr().out
