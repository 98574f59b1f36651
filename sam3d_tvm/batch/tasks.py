"""What is to be done of one object, what has happened to it, and what became of it.

Nothing here imports TVM: a worker of a cluster sets its threads before that.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sam3d_tvm.batch.jobs import Job, printable

OK, FAILED = "ok", "failed"


@dataclass(frozen=True)
class Row:
    """What became of one object. error: why it failed. watertight: None without a mesh. photo, mask, pointmap: paths as
    `Jobs.shown` has them. folder: of its files in the output folder, with / between. seconds, evaluations: by stage, as of
    `outputs.Result`."""

    name: str
    status: str
    error: str = ""
    voxels: int | None = None
    gaussians: int | None = None
    triangles: int | None = None
    watertight: bool | None = None
    photo: str = ""
    mask: str = ""
    pointmap: str = ""
    seed: int | None = None
    folder: str = ""
    files: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Row":
        """Of what `as_json` made. TypeError or KeyError for anything else."""
        return cls(**{**value, "files": tuple(value["files"])})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """A job with its seed, its number among all, where its files go, digests of all that decides its structure and its files,
    and what the row of the results says of it in any case."""

    number: int
    job: Job
    folder: Path
    made_from: str
    files_from: str
    row: Row


@dataclass(frozen=True)
class Event:
    """What has happened to a task: a stage of it is over, which ran that model, or none at first; with a row, all of it is.
    notes: on how its files were understood. worker: where that was, if not in this process."""

    task: Task
    model: str = ""
    row: Row | None = None
    notes: tuple[str, ...] = ()
    worker: str = ""


def failed(row: Row, error: Exception | str) -> Row:
    """The row of an object that failed, with what went wrong in one line."""
    if isinstance(error, MemoryError):
        text = f"out of memory: {error}" if str(error) else "out of memory"
    elif isinstance(error, (ValueError, str)):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return replace(row, status=FAILED, error=printable(" ".join(text.split())))
