"""The objects of a group, stage by stage: each model is opened once, runs for all of them, and is let go of.

An object that fails ends there, with what went wrong; the others go on. What fails in writing ends all, as it befalls each.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sam3d_tvm.batch.jobs import Job, printable
from sam3d_tvm.batch.report import FAILED, OK, THUMBNAIL, Row
from sam3d_tvm.memory import TYPICAL_VOXELS
from sam3d_tvm.overview import masked_photo
from sam3d_tvm.pipeline import OpenModels, Pipeline, Progress
from sam3d_tvm.png import save_png

FLOAT = 4
PLANES = 14  # of pixels that are held of a photo: colours and mask, cropped and whole, and points of both
SIDE = 320  # pixels along the longer side of the photo that a page of results shows
SURFACE = 300  # numbers that a mesh holds for each voxel: 16 vertices with their colours, 32 triangles
LARGEST_GROUP = 16  # objects: with more, results come late, and models are opened seldom enough


@dataclass(frozen=True)
class Task:
    """A job with its seed, its number among all, where its files go, a digest of all that decides them, and what the row of the
    results says of it in any case."""

    number: int
    job: Job
    folder: Path
    digest: str
    row: Row


@dataclass(frozen=True)
class Event:
    """What has happened to a task: a stage of it is over, which ran that model, or none at first; with a row, all of it is.
    worker: where that was, if not in this process."""

    task: Task
    model: str = ""
    row: Row | None = None
    worker: str = ""


def group_size(pipeline: Pipeline, max_memory: int | None, stage1_only: bool) -> int:
    """How many objects of a typical number of voxels go through a stage together: as many as `max_memory` bytes leave room for
    beside the largest stage, and no more than `LARGEST_GROUP`."""
    if max_memory is None:
        return LARGEST_GROUP
    room = max_memory - max(pipeline.memory(stage1_only=stage1_only).values())
    return max(1, min(LARGEST_GROUP, 1 + room // held_bytes(pipeline)))


def held_bytes(pipeline: Pipeline, voxels: int | None = None) -> int:
    """What an object takes between its stages at most: inputs, tokens and what was decoded, for a typical number of voxels."""
    config = pipeline.config
    tokens = max(model.tokens * model.channels for model in (config.ss_condition_embedder, config.slat_condition_embedder))
    decoders = (config.models.get(name) for name in ("slat_decoder_gs", "slat_decoder_gs_4"))
    numbers = sum(model.out_channels for model in decoders if model is not None) + config.slat_generator.in_channels + SURFACE
    voxels = TYPICAL_VOXELS if voxels is None else voxels
    return FLOAT * (PLANES * config.preprocessing.size**2 + tokens + voxels * numbers)


def run_group(
    pipeline: Pipeline,
    tasks: Sequence[Task],
    options: Mapping[str, Any],
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Event]:
    """Runs all of `tasks`, writes their files, and tells of every stage, and of each task when it is done.

    options: those of `Pipeline.generate`. OSError where files cannot be written, with the name of one; ValueError for a model
    that cannot be opened.
    """
    models, progress = OpenModels(pipeline.artifacts), _Together(on_progress)
    steps = [_steps(pipeline, task, options, models, progress) for task in tasks]
    order = ("", *pipeline.config.models)  # first what needs no model: the photo
    waiting = dict.fromkeys(range(len(tasks)), "")  # by the number of a task the model that its next stage runs
    while waiting:
        model = min(waiting.values(), key=order.index)
        turn = [number for number, name in waiting.items() if name == model]
        if model:
            models[model]  # opened here, as what is wrong with it is no fault of a photo
        for done, number in enumerate(turn):
            progress.begin(done, len(turn))
            row = None
            try:
                waiting[number] = next(steps[number])
            except StopIteration as end:
                row = end.value
            except _CannotWriteError as error:
                raise error.error from None
            except Exception as error:  # of this photo; also MemoryError
                row = failed(tasks[number].row, error)
            if row is not None:
                del waiting[number]
                steps[number] = None  # lets go of all that it holds
            yield Event(tasks[number], model, row)
    models.let_go()


def _steps(pipeline, task: Task, options: Mapping[str, Any], models: OpenModels, on_progress) -> Generator[str, None, Row]:
    """The stages of a task: yields the model that the next one runs, and returns the row."""
    job, own = task.job, {"pointmap": task.job.pointmap, "seed": task.job.seed}
    result = yield from pipeline.steps(job.photo, job.mask, **options | own, models=models, on_progress=on_progress)
    try:
        files = [path.name for path in result.save(task.folder, options["formats"])]
        if result.photo is not None:
            save_png(task.folder / THUMBNAIL, masked_photo(result.photo, SIDE, SIDE))
            files.append(THUMBNAIL)
    except OSError as error:
        raise _CannotWriteError(error) from error
    gaussians = result.few_gaussians if result.gaussians is None else result.gaussians
    return replace(
        task.row,
        status=OK,
        voxels=len(result.coords),
        gaussians=None if gaussians is None else len(gaussians),
        triangles=None if result.mesh is None else len(result.mesh.faces),
        watertight=None if result.mesh is None else bool(result.mesh.is_watertight),
        folder=job.name,
        files=tuple(sorted(files)),
        seconds=dict(result.seconds),
    )


def failed(row: Row, error: Exception | str) -> Row:
    """The row of an object that failed, with what went wrong in one line."""
    if isinstance(error, MemoryError):
        text = f"out of memory: {error}" if str(error) else "out of memory"
    elif isinstance(error, (ValueError, str)):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return replace(row, status=FAILED, error=printable(" ".join(text.split())))


class _CannotWriteError(Exception):
    """An OSError in writing results, which is no fault of a photo."""

    def __init__(self, error: OSError):
        self.error = error


class _Together:
    """Progress of a stage over several objects, as if it were one."""

    def __init__(self, tell: Callable[[Progress], None]):
        self._tell = tell
        self.begin(0, 1)

    def begin(self, done: int, objects: int) -> None:
        """The next one of so many objects, of which so many are done."""
        self._done, self._objects = done, objects

    def __call__(self, progress: Progress) -> None:
        done = self._done * progress.total + progress.done
        self._tell(Progress(progress.stage, done, self._objects * progress.total))
