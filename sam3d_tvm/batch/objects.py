"""The objects of a group, stage by stage: each model is opened once, runs for all of them, and is let go of.

An object that fails ends there, with what went wrong; the others go on. What fails in writing ends all, as it befalls each.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sam3d_tvm.batch.report import THUMBNAIL
from sam3d_tvm.batch.tasks import OK, Event, Row, Task, failed
from sam3d_tvm.memory import TYPICAL_VOXELS
from sam3d_tvm.mesh.bake import Surface
from sam3d_tvm.models import MODELS
from sam3d_tvm.notices import heard_by
from sam3d_tvm.outputs import DECODED, Result, ResultFolder, check_formats
from sam3d_tvm.overview import masked_photo
from sam3d_tvm.pipeline import DEPTH_MODEL, OpenModels, Pipeline, PointMaps
from sam3d_tvm.png import save_png
from sam3d_tvm.run_folder import RunFolder

FLOAT = 4
PLANES = 14  # of pixels that are held of a photo: colours and mask, cropped and whole, and points of both
SIDE = 320  # pixels along the longer side of the photo that a page of results shows
SURFACE = 300  # numbers that a mesh holds for each voxel: 16 vertices with their colours, 32 triangles
LARGEST_GROUP = 16  # objects: with more, results come late, and models are opened seldom enough


def group_size(pipeline: Pipeline, options: Mapping[str, Any]) -> int:
    """How many objects of a typical number of voxels go through a stage together: as many as `max_memory` bytes leave room for
    beside the largest stage, and no more than `LARGEST_GROUP`."""
    if options["max_memory"] is None:
        return LARGEST_GROUP
    looks = pipeline.runs_depth_model(options)
    taken = pipeline.memory(stage1_only=options["stage1_only"], formats=options["formats"], depth_model=looks)
    room = options["max_memory"] - max(taken.values())
    return max(1, min(LARGEST_GROUP, 1 + room // held_bytes(pipeline)))


def held_bytes(pipeline: Pipeline, voxels: int | None = None) -> int:
    """What an object takes between its stages at most: inputs, tokens and what was decoded, for a typical number of voxels."""
    config = pipeline.config
    tokens = max(model.tokens * model.channels for model in (config.ss_condition_embedder, config.slat_condition_embedder))
    decoders = (config.models.get(name) for name in ("slat_decoder_gs", "slat_decoder_gs_4"))
    numbers = sum(model.out_channels for model in decoders if model is not None) + config.slat_generator.in_channels + SURFACE
    voxels = TYPICAL_VOXELS if voxels is None else voxels
    return FLOAT * (PLANES * config.preprocessing.size**2 + tokens + voxels * numbers)


def stages(pipeline: Pipeline, options: Mapping[str, Any]) -> int:
    """How many stages an object has: the photo, and each model that runs."""
    idle = set() if pipeline.runs_depth_model(options) else {DEPTH_MODEL}
    if options["stage1_only"]:
        return 1 + sum(MODELS[name].stage == 1 and name not in idle for name in pipeline.config.models)
    idle |= set(DECODED) - check_formats(options["formats"])
    return 1 + sum(name not in idle for name in pipeline.config.models)


def run_group(
    pipeline: Pipeline,
    tasks: Sequence[Task],
    options: Mapping[str, Any],
) -> Iterator[Event]:
    """Runs all of `tasks`, writes their files, and tells of every stage, and of each task when it is done.

    options: those of `Pipeline.generate`. OSError where files cannot be written, with the name of one; ValueError for a model
    that cannot be opened.
    """
    models, point_maps = OpenModels(pipeline.artifacts), PointMaps()
    steps = [_steps(pipeline, task, options, models, point_maps) for task in tasks]
    order = ("", *pipeline.config.models)  # first what needs no model: the photo
    waiting = dict.fromkeys(range(len(tasks)), "")  # by the number of a task the model that its next stage runs
    while waiting:
        model = min(waiting.values(), key=order.index)
        turn = [number for number, name in waiting.items() if name == model]
        if model:
            models[model]  # opened here, as what is wrong with it is no fault of a photo
        for number in turn:
            row, notes = None, []
            try:
                with heard_by(notes.append):
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
            yield Event(tasks[number], model, row, tuple(notes))
        point_maps.let_go()
    models.let_go()


def _steps(
    pipeline: Pipeline, task: Task, options: Mapping[str, Any], models: OpenModels, point_maps: PointMaps
) -> Generator[str, None, Row]:
    """The stages of a task: yields the model that the next one runs, and returns the row. What an earlier run has written is
    gone on from, and kept."""
    job, run = task.job, RunFolder(task.folder, resume=True)
    writer = ResultFolder(run, options["formats"], Surface(options["triangles"], options["texture_size"]))

    def write(result: Result) -> None:
        with _writing():
            writer(result)

    own = {"pointmap": job.pointmap, "seed": job.seed, "resume": writer.structure, "formats": writer.formats}
    shared = {"models": models, "point_maps": point_maps}
    result = yield from pipeline.steps(job.photo, job.mask, **{**options, **own}, **shared, on_part=write)
    with _writing():
        files = [path.name for path in writer.finish(result)]
        picture = masked_photo(result.photo, SIDE, SIDE)
        files.append(run.write(THUMBNAIL, lambda path: save_png(path, picture)).name)
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
        evaluations=dict(result.evaluations),
    )


class _CannotWriteError(Exception):
    """An OSError in writing results, which is no fault of a photo."""

    def __init__(self, error: OSError):
        self.error = error


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _CannotWriteError(error) from error
