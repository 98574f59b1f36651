"""Runs the jobs of a folder or a CSV and keeps the tables of results up to date.

In the output folder are results.csv, seconds.csv, index.html, and a folder for each object with its files and record.json,
which says what they were made from. A second run keeps what is whole and of the same photo, mask, options and models, and the
structure where only formats differ.
"""

import errno
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from sam3d_tvm.artifacts import Artifacts
from sam3d_tvm.batch.jobs import Job, Jobs
from sam3d_tvm.batch.objects import group_size, run_group, stages
from sam3d_tvm.batch.report import PAGE, RESULTS, SECONDS, THUMBNAIL, VIEWS, VOXELS, Report
from sam3d_tvm.batch.tasks import OK, Event, Row, Task, failed
from sam3d_tvm.fingerprint import fingerprint
from sam3d_tvm.lock import locked
from sam3d_tvm.mesh.bake import TEXTURE_SIZE
from sam3d_tvm.notices import say
from sam3d_tvm.outputs import FORMATS, LATENTS, POSE
from sam3d_tvm.pipeline import OnProgress, Pipeline, Progress
from sam3d_tvm.run_folder import RUN, RunFolder, check_writable, forget
from sam3d_tvm.structure import STRUCTURE
from sparse_ops.deploy.files import write_bytes
from sparse_ops.deploy.reading import digest, read_json

FILES = ("formats", "stage1_only", "triangles", "texture_size")  # options that decide what is written, and no structure
RECORD, LOCK = "record.json", ".lock"
DEFAULTS = {"seed": 42, "formats": ("ply", "glb"), "stage1_only": False, "max_memory": None}
DEFAULTS |= {"triangles": None, "texture_size": TEXTURE_SIZE}
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.tmp", re.DOTALL)  # of files that were being written when a process died
RESERVED = frozenset(
    {RESULTS, SECONDS, PAGE, RECORD, THUMBNAIL, VIEWS, VOXELS, RUN, POSE, STRUCTURE} | {form.file for form in FORMATS.values()}
)  # names that no object may have, as a folder of that name would be in the way of a file


class Runner(Protocol):
    """Runs tasks in any order, each once, in this process or elsewhere, and tells of each when its files are written."""

    def __call__(self, pipeline: Pipeline, tasks: Iterator[Task], options: Mapping[str, Any]) -> Iterator[Event]: ...


def in_this_process(pipeline: Pipeline, tasks: Iterator[Task], options: Mapping[str, Any]) -> Iterator[Event]:
    """A runner that takes as many tasks through each stage together as memory allows, see `group_size`."""
    size = group_size(pipeline, options)
    while group := list(islice(tasks, size)):
        yield from run_group(pipeline, group, options)


def run_batch(
    pipeline: Pipeline,
    jobs: Jobs,
    output: Path,
    *,
    runner: Runner = in_this_process,
    on_row: Callable[[Row], None] = lambda row: None,
    on_event: Callable[[Event], None] = lambda event: None,
    on_progress: OnProgress = lambda progress: None,
    **options: Any,
) -> list[Row]:
    """The rows of all jobs, in their order; their files are in `output`, each object's in a folder of its name.

    options: those of `Pipeline.generate`, but for what is an object's own. What fails becomes a row with an error, and the next
    one goes on. Objects of an earlier run that are whole, and were made from the same files, options and models, are kept;
    others are computed anew, and what an earlier run wrote of them is removed. Objects that are not among `jobs` stay. Two
    processes with one output take turns. on_row: told what becomes of each object; on_event: of each stage of each that is run;
    on_progress: of how many stages of all objects are over.

    Raises ValueError for options that make no sense, and OSError where nothing can be written, both before any work; and
    OSError, with the name of the file, when that comes later, on a full disk: the next run keeps what is written by then.
    """
    options = DEFAULTS | options
    pipeline.steps("", **options)  # says what makes no sense for any object
    output, each, over = Path(output), stages(pipeline, options), {}
    check_writable(output)
    report = Report(output, len(jobs))
    with locked(output / LOCK, lambda: say(f"waiting for another process that writes into {str(output)!r}")):
        _tidy(output)
        report.write()
        on_progress(Progress("objects, by stages", 0, each * len(jobs)))

        def put(number: int, row: Row) -> None:
            report.put(number, row)
            on_row(row)
            tell(number, each)

        def tell(number: int, count: int) -> None:
            over[number] = count
            on_progress(Progress("objects, by stages", sum(over.values()), each * len(jobs)))

        for event in runner(pipeline, _tasks(pipeline, jobs, output, options, put), options):
            on_event(event)
            for note in event.notes:
                say(f"{event.task.job.name}: {note}")
            if event.row is not None:
                task = event.task
                if event.row.status == OK:
                    _keep(task, event.row)
                put(task.number, event.row)
            else:
                tell(event.task.number, min(over.get(event.task.number, 0) + 1, each - 1))
        report.write()
    return report.rows


def _tasks(
    pipeline: Pipeline, jobs: Jobs, output: Path, options: Mapping[str, Any], put: Callable[[int, Row], None]
) -> Iterator[Task]:
    """What is to be computed; the rows of all else are `put`."""
    of_files = {name: options[name] for name in FILES} | {"formats": sorted(set(options["formats"]))}
    made_with, files_with = _identity(pipeline.artifacts, options), json.dumps(of_files, sort_keys=True)
    for number, job in enumerate(jobs.objects):
        seed = options["seed"] if job.seed is None else job.seed
        paths = {name: jobs.shown(getattr(job, name)) for name in ("photo", "mask", "pointmap")}
        row = Row(job.name, OK, **paths, seed=seed)
        if problem := job.problem or _in_the_way(job.name):
            put(number, failed(row, problem))
            continue
        folder = output / job.name
        try:
            made_from = _digest(job, seed, made_with)
            files_from = hashlib.sha256(f"{made_from} {files_with}".encode()).hexdigest()
        except OSError as error:
            put(number, failed(row, f"cannot read {error.filename!r}: {error.strerror}"))
            continue
        found = _Record.read(folder)
        if found.files_from == files_from and found.row is not None and found.is_whole(folder):
            put(number, replace(found.row, name=row.name, **paths))
            continue
        try:
            if found.files_from != files_from:
                if found.made_from != made_from or not _keep_structure(folder, options):
                    forget(folder)
                _Record(made_from, files_from).write(folder)
        except ValueError as error:  # something is in the way
            put(number, failed(row, error))
            continue
        _tidy(folder)
        yield Task(number, replace(job, seed=seed), folder, made_from, files_from, row)


def _in_the_way(name: str) -> str:
    """What is wrong with a name of which a part is that of a file of results, or nothing."""
    if found := [part for part in name.split("/") if part.casefold() in RESERVED]:
        return f"name: expected none of a file of results, given {found[0]!r}: rename it, or give a name in a CSV"
    return ""


def _keep(task: Task, row: Row) -> None:
    """Says that the files of a task are whole."""
    sizes = {name: (task.folder / name).stat().st_size for name in row.files}
    _Record(task.made_from, task.files_from, row, sizes).write(task.folder)


def _keep_structure(folder: Path, options: Mapping[str, Any]) -> bool:
    """Removes what an earlier run has written of an object but for its structure and the formats that are asked for. Whether
    that can be gone on from."""
    try:
        run = RunFolder(folder, resume=True)
    except ValueError:
        return False
    if options["stage1_only"] and run.has(STRUCTURE, LATENTS):
        return False
    run.keep_only([STRUCTURE, *(file for name in options["formats"] for file in FORMATS[name].writers)])
    return True


class _Record:
    """record.json in the folder of an object. made_from, files_from: digests of all that decides its structure, and its files;
    row, sizes: once all are written."""

    def __init__(
        self, made_from: str = "", files_from: str = "", row: Row | None = None, sizes: Mapping[str, int] | None = None
    ):
        self.made_from, self.files_from, self.row, self.sizes = made_from, files_from, row, dict(sizes or {})

    @classmethod
    def read(cls, folder: Path) -> "_Record":
        """Of a folder; an empty one where there is none, or one that cannot be read. Names lead nowhere else."""
        try:
            value = read_json(folder / RECORD)
            sizes = {str(name): int(size) for name, size in value["sizes"].items()}
            if any(name != Path(name).name or name == ".." for name in sizes):
                return cls()
            row = None if value["row"] is None else Row.from_json(value["row"])
            return cls(str(value["made_from"]), str(value["files_from"]), row, sizes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls()

    def write(self, folder: Path) -> None:
        row = None if self.row is None else self.row.as_json()
        value = {"made_from": self.made_from, "files_from": self.files_from, "row": row, "sizes": self.sizes}
        write_bytes(folder / RECORD, (json.dumps(value, indent=1) + "\n").encode())

    def is_whole(self, folder: Path) -> bool:
        """Whether all files are there, and as long as they were."""
        try:
            return all((folder / name).stat().st_size == size for name, size in self.sizes.items())
        except OSError:
            return False


def _identity(artifacts: Artifacts, options: Mapping[str, Any]) -> str:
    """What changes with the code of this package, the models and the options of all objects that decide the structure."""
    own = {name: value for name, value in options.items() if name not in (*FILES, "seed", "max_memory")}
    value = {
        "source": fingerprint("sam3d_tvm.batch"),
        "config": artifacts.config.to_json(),
        "precision": artifacts.precision,
        "models": artifacts.keys,
        "options": own,
    }
    # Caches and qualities of one's own are frozen dataclasses, which say all that they are.
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()


def _digest(job: Job, seed: int, made_with: str) -> str:
    """What changes with all that decides the files of an object. OSError for one that cannot be read."""
    found = hashlib.sha256(f"{made_with} {seed}".encode())
    for path in (job.photo, job.mask, job.pointmap):
        if path is not None and not path.is_file():  # reading a pipe may never end
            raise OSError(errno.EINVAL if path.exists() else errno.ENOENT, "expected a file", str(path))
        found.update(b"none " if path is None else f"{path.suffix.lower()} {digest(path)} ".encode())
    return found.hexdigest()


def _tidy(folder: Path) -> None:
    """Removes what a process left behind that died while it wrote to the folder."""
    with suppress(OSError):
        for path in folder.iterdir():
            if TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)
