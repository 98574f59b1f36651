"""Models compiled side by side: processes that compile one after the other, as most of compiling is on one core.

The parent tells each of its processes by pipe what to compile, and hears when it is done, or why it was not: a line of JSON
each time. They are started as commands, not by `multiprocessing`, which would run the user's script once more.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO

import tvm

from sam3d_tvm.notices import heard_by, say

RAISED = (ValueError, OSError, MemoryError)  # what reaches who asked as it is; all else as a RuntimeError
COMMAND = "from sam3d_tvm.compile_processes import serve; serve()"


def compile_side_by_side(
    source: Any,
    folder: Path,
    names: Sequence[str],
    precision: str,
    target: tvm.target.Target | None,
    processes: int,
    on_done: Callable[[str], None],
) -> None:
    """`artifacts.compile_model` of every name, by up to `processes` at a time. on_done: told of each name, in any order, in the
    thread that calls. source: one of a preset.

    Raises what a model raised, when the others that had begun have ended, as one of `RAISED`; RuntimeError, with its last
    words, for a process that died.
    """
    left: SimpleQueue[str] = SimpleQueue()
    done: SimpleQueue[tuple[str, list[str], BaseException | None] | None] = SimpleQueue()
    for name in names:
        left.put(name)
    task = [source.to_json(), str(folder), precision, None if target is None else str(target)]
    workers = [threading.Thread(target=_work, args=(task, left, done), daemon=True) for _ in range(min(processes, len(names)))]
    for worker in workers:
        worker.start()
    failure, working = None, len(workers)
    while working:
        found = done.get()
        if found is None:
            working -= 1
            continue
        name, notices, error = found
        for notice in notices:
            say(notice)
        if error is None:
            on_done(name)
        elif failure is None:
            failure = error
            _drain(left)
    if failure is not None:
        raise failure


def _drain(queue: SimpleQueue) -> None:
    while True:
        try:
            queue.get_nowait()
        except Empty:
            return


def _work(task: list, left: SimpleQueue, done: SimpleQueue) -> None:
    """A process, and what it is told until nothing is left."""
    with tempfile.TemporaryFile() as words:
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": words}
        with subprocess.Popen([sys.executable, "-c", COMMAND], **options) as process:
            name = None
            try:
                _write(process.stdin, task)
                while True:
                    name = left.get_nowait()
                    _write(process.stdin, name)
                    notices, raised = json.loads(process.stdout.readline())
                    done.put((name, notices, None if raised is None else _error(*raised)))
            except Empty:
                pass
            except (OSError, ValueError):  # a line that is not there is no JSON
                words.seek(0)
                last = (words.read().decode(errors="replace").splitlines() or ["killed, for memory perhaps"])[-1]
                done.put((name or "", [], RuntimeError(f"compiling {name}: its process ended: {last}")))
            finally:
                with suppress(OSError):
                    process.stdin.close()
                done.put(None)


def _write(pipe: BinaryIO, value: Any) -> None:
    pipe.write(json.dumps(value).encode() + b"\n")
    pipe.flush()


def _described(error: Exception) -> tuple[str, list]:
    """The name of one of `RAISED`, or of RuntimeError, and its arguments."""
    kind = next((kind for kind in RAISED if isinstance(error, kind)), RuntimeError)
    if isinstance(error, OSError) and error.errno is not None:
        return kind.__name__, [error.errno, error.strerror, None if error.filename is None else str(error.filename)]
    return kind.__name__, [str(error) if kind is not RuntimeError else f"{type(error).__name__}: {error}"]


def _error(name: str, arguments: list) -> Exception:
    """The inverse of `_described`."""
    return next((kind for kind in RAISED if kind.__name__ == name), RuntimeError)(*arguments)


def serve() -> None:
    """What such a process does: reads a task and then names from its input, and writes for each the notices that were said,
    and the error or None."""
    from sam3d_tvm.tvm_without_torch import import_tvm

    import_tvm()
    from sam3d_tvm.artifacts import compile_model
    from sam3d_tvm.presets import source_from_json

    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what others print is no reply
    described, folder, precision, kind = json.loads(sys.stdin.buffer.readline())
    source = source_from_json(described)
    target = None if kind is None else tvm.target.Target(json.loads(kind))
    for line in sys.stdin.buffer:
        notices, raised = [], None
        with heard_by(notices.append):
            try:
                compile_model(source, Path(folder), json.loads(line), precision, target)
            except Exception as error:
                raised = _described(error)
        _write(replies, [notices, raised])
