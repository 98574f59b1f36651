"""A worker of a cluster: runs objects in a folder of its own, and sends their files.

Nothing here imports TVM at the top, as threads are set before that.
"""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sam3d_tvm.batch.tasks import Row, Task

INPUTS = ("photo", "mask", "pointmap")


@dataclass(frozen=True)
class Packed:
    """A task with the bytes of its files. inputs: name, folder as people wrote it, and bytes; results: what an earlier run has
    written of it."""

    task: Task
    inputs: Mapping[str, tuple[str, str, bytes]] = field(default_factory=dict)
    results: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Task, results: Sequence[str]) -> "Packed":
        """OSError for a file that cannot be read."""
        paths = {name: getattr(task.job, name) for name in INPUTS}
        return cls(
            task,
            {name: (path.name, str(path.parent), path.read_bytes()) for name, path in paths.items() if path is not None},
            {name: (task.folder / name).read_bytes() for name in results},
        )

    def unpacked(self, folder: Path) -> Task:
        """The task, with its files in a folder."""
        paths: dict[str, Path | None] = dict.fromkeys(INPUTS)
        for name, (file, _, data) in self.inputs.items():
            (folder / name).mkdir(parents=True)
            paths[name] = folder / name / file
            paths[name].write_bytes(data)
        results = folder / "results"
        results.mkdir(parents=True)
        for name, data in self.results.items():
            (results / name).write_bytes(data)
        return replace(self.task, job=replace(self.task.job, **paths), folder=results)

    def as_written(self, text: str, folder: Path) -> str:
        """A message with the paths that people wrote in place of those in `folder`."""
        for name, (file, parent, _) in self.inputs.items():
            here, there = folder / name, Path(parent)
            text = text.replace(repr(str(here / file)), repr(str(there / file))).replace(str(here / file), str(there / file))
        return text


@dataclass(frozen=True)
class Sent:
    """What a worker tells of the task of that number: an `Event`, and the files that were written, the last of which lists the
    others. broken: what is wrong with the worker itself."""

    number: int = -1
    model: str = ""
    row: Row | None = None
    notes: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    broken: str = ""


def open_artifacts(folder: str) -> Any:
    """A pipeline of compiled models. ValueError as `Pipeline.from_artifacts`."""
    from sam3d_tvm.pipeline import Pipeline

    return Pipeline.from_artifacts(folder)


class Worker:
    """Runs in a process of the cluster; `open_pipeline` is called there, and should come to models of these keys. source: the
    fingerprint of this package."""

    def __init__(self, open_pipeline: Callable[[], Any], keys: Mapping[str, Any], source: str, threads: int):
        self._open, self._keys, self._source, self._threads = open_pipeline, keys, source, threads
        self._pipeline = None

    def begin(self) -> tuple[str, str]:
        """Where this is, and what is wrong with the models there, or nothing."""
        os.environ["TVM_NUM_THREADS"] = str(self._threads)
        from sam3d_tvm.tvm_without_torch import import_tvm

        import_tvm()
        from sam3d_tvm.fingerprint import fingerprint

        where = f"{socket.gethostname()}:{os.getpid()}"
        try:
            if fingerprint("sam3d_tvm.batch") != self._source:
                return where, "expected the sam3d_tvm of the process that gives out the work, given another version"
            self._pipeline = self._open()
            artifacts = self._pipeline.artifacts
            if artifacts.keys != self._keys:
                raise ValueError(f"artifacts {str(artifacts.folder)!r}: expected those of the process that gives out the work")
            _check_runs_here(artifacts)
        except (ValueError, OSError) as error:
            return where, f"{error}; artifacts must be at this path on every node, compiled for its CPU"
        return where, ""

    def run(self, packed: Sequence[Packed], options: Mapping[str, Any]) -> Iterator[Sent]:
        """Runs tasks together, see `run_group`, and yields what has happened."""
        from sam3d_tvm.batch.objects import run_group

        with tempfile.TemporaryDirectory(prefix="sam3d-") as temporary:
            folders = [Path(temporary) / str(number) for number in range(len(packed))]
            by_number = {pack.task.number: (pack, folder) for pack, folder in zip(packed, folders, strict=True)}
            try:
                tasks = [pack.unpacked(folder) for pack, folder in zip(packed, folders, strict=True)]
                known = {task.number: _files(task.folder) for task in tasks}
                for event in run_group(self._pipeline, tasks, options):
                    number = event.task.number
                    pack, folder = by_number[number]
                    found = _files(event.task.folder)
                    new = [name for name, state in found.items() if known[number].get(name) != state]
                    known[number] = found
                    row = event.row and replace(event.row, error=pack.as_written(event.row.error, folder))
                    notes = tuple(pack.as_written(note, folder) for note in event.notes)
                    files = {name: (event.task.folder / name).read_bytes() for name in sorted(new, key=_last)}
                    yield Sent(number, event.model, row, notes, files)
            except (ValueError, OSError) as error:
                yield Sent(broken=str(error))


def _check_runs_here(artifacts: Any) -> None:
    """ValueError for models that were compiled for another CPU, system or version, with the name of one."""
    from sparse_ops.deploy.component import MANIFEST
    from sparse_ops.deploy.manifest import Manifest

    for name in artifacts.config.models:
        folder = artifacts.folder / name
        try:
            Manifest.from_json((folder / MANIFEST).read_text())[0].check_runs_here()
        except ValueError as error:
            raise ValueError(f"artifacts {str(folder)!r}: {error}") from error


def _last(name: str) -> tuple[bool, str]:
    """Sorts the list of files behind the files."""
    from sam3d_tvm.run_folder import RUN

    return name == RUN, name


def _files(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Files by name, with what changes when one is replaced."""
    states = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (state.st_ino, state.st_mtime_ns, state.st_size) for name, state in states.items()}
