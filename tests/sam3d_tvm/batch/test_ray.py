"""A batch on a cluster: one of two workers is killed, and nothing is lost, nothing done twice, and the bytes are the same."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from sam3d_tvm.batch import on_ray, read_jobs, run_batch
from sam3d_tvm.batch.tasks import Row, Task
from sam3d_tvm.batch.worker import Packed, Worker, open_artifacts
from sam3d_tvm.fingerprint import fingerprint
from sam3d_tvm.pipeline import Pipeline
from tests.sam3d_tvm.batch.photos import contents, write_photo
from tests.sam3d_tvm.batch.ray_run import OPTIONS
from tests.sam3d_tvm.tiny_pipeline import copied_artifacts, tiny_artifacts

ROOT = Path(__file__).parents[3]
SECONDS = 600
SOURCE = fingerprint("sam3d_tvm.batch")
ray = pytest.importorskip("ray")


@pytest.fixture
def photos(tmp_path) -> Path:
    """A photo more than two workers are first given two of each, and one that is none."""
    for number in range(5):
        write_photo(tmp_path / "photos" / f"p{number}.png", number)
    (tmp_path / "photos" / "q.png").write_bytes(b"no picture")
    return tmp_path / "photos"


def run_apart(*argv: str) -> dict:
    """What `ray_run` prints; it and all that it started have ended."""
    command = [sys.executable, "-m", "tests.sam3d_tvm.batch.ray_run", *map(str, argv)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def test_a_worker_is_killed_and_nothing_is_lost_nor_done_twice(photos, tmp_path):
    artifacts = tiny_artifacts().folder
    (marks := tmp_path / "marks").mkdir()
    seen = run_apart(photos, tmp_path / "ray", marks, artifacts)
    assert len(seen["workers"]) == 3 and len(seen["killed"]) == 1  # another one took its place
    run_batch(Pipeline(tiny_artifacts()), read_jobs(photos), tmp_path / "here", **OPTIONS)
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
    assert not list((tmp_path / "ray").rglob("*.tmp"))

    runs = Counter(tuple(path.name.split("-")[:2]) for path in marks.iterdir())
    assert all(runs[f"p{number}", "slat_decoder_gs"] >= 1 for number in range(5))
    for name in seen["done"]:  # what was done before the kill is not done again
        assert [count for (photo, _), count in runs.items() if photo == name] == [1] * 6, runs
    for name in seen["structures"]:  # nor is a structure that had come
        assert runs[name, "ss_generator"] == 1, runs
    lost = {path.name.split("-")[0] for path in marks.iterdir() if path.name.endswith(f"-{seen['killed'][0].split(':')[1]}")}
    assert all(count == 1 for (photo, _), count in runs.items() if photo not in lost), runs  # nor what others were at


def test_messages_are_those_of_one_process(tmp_path):
    photo = tmp_path / "it's \\ here" / "a.png"
    photo.parent.mkdir()
    photo.write_bytes(b"no picture")
    (job,) = read_jobs(photo.parent).objects
    pack = Packed.of(Task(0, job, tmp_path / "out", "", "", Row("a", "ok")), [])
    task = pack.unpacked(tmp_path / "worker")
    assert task.job.photo.read_bytes() == b"no picture" and list(task.folder.iterdir()) == []
    assert pack.as_written(f"image {str(task.job.photo)!r}: no", tmp_path / "worker") == f"image {str(photo)!r}: no"
    assert pack.as_written(f"image {task.job.photo}: no", tmp_path / "worker") == f"image {photo}: no"


def test_a_worker_refuses_artifacts_that_it_cannot_run(tmp_path):
    keys, folder = tiny_artifacts().keys, copied_artifacts(tmp_path / "copied")
    where, problem = Worker(lambda: open_artifacts(str(folder)), keys, SOURCE, 1).begin()
    assert problem == "" and where.endswith(f":{os.getpid()}")
    manifest = folder / "ss_decoder" / "manifest.json"
    value = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(value | {"cpu_features": [*value["cpu_features"], "wings"]}))
    made = folder / "ss_decoder" / "made_from.json"
    sizes = json.loads(made.read_text())
    sizes["files"]["manifest.json"] = manifest.stat().st_size
    made.write_text(json.dumps(sizes))
    _, problem = Worker(lambda: open_artifacts(str(folder)), keys, SOURCE, 1).begin()
    assert "ss_decoder" in problem and "this CPU lacks wings" in problem and "on every node" in problem
    for open_pipeline, says in (
        (lambda: open_artifacts(str(tmp_path / "none")), "expected a folder with pipeline.json"),
        (lambda: Pipeline(tiny_artifacts()), "expected those of the process that gives out the work"),
    ):
        _, problem = Worker(open_pipeline, {}, SOURCE, 1).begin()
        assert says in problem
    assert "given another version" in Worker(lambda: None, keys, "other", 1).begin()[1]


def test_without_a_cluster_is_said(tmp_path):
    write_photo(tmp_path / "photos" / "a.png")
    runner = on_ray("127.0.0.1:1")
    with pytest.raises(ValueError, match=r"ray: expected a cluster that exists, as of `ray start --head`, given '127.0.0.1:1'"):
        run_batch(Pipeline(tiny_artifacts()), read_jobs(tmp_path / "photos"), tmp_path / "out", runner=runner, **OPTIONS)
