"""The same on a Ray cluster that exists: this process gives out the work and writes all results, workers compute them.

Photos go to the workers as bytes, and files of results come back as bytes, so that workers need no folder of the user's; only
the artifacts, which have gigabytes, must be at the same path on every node. On each node is a worker with all its CPUs, or as
many as fit with `threads` of them each.

What a worker that dies had not sent is given out again. An object whose structure has come goes on from there. When a group has
died with a worker its objects run alone, so that one that ends every worker fails alone.
"""

import re
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sam3d_tvm.batch.objects import group_size
from sam3d_tvm.batch.tasks import Event, Task, failed
from sam3d_tvm.batch.worker import Packed, Sent, Worker, open_artifacts
from sam3d_tvm.fingerprint import fingerprint
from sam3d_tvm.notices import say
from sam3d_tvm.pipeline import Pipeline
from sam3d_tvm.run_folder import RUN, RunFolder
from sparse_ops.deploy.files import write_bytes

DEATHS = 3  # of workers with an object, after which it fails
STARTS = 3  # of a worker that dies before it has begun, after which all ends
SAY_AFTER = 60.0  # seconds without a worker


def on_ray(
    address: str = "auto", threads: int | None = None, open_pipeline: Callable[[], Pipeline] | None = None
) -> Callable[[Pipeline, Iterator[Task], Mapping[str, Any]], Iterator[Event]]:
    """A `Runner` on the cluster at an address, "auto" for the one that this machine belongs to.

    threads: CPUs of a worker, by default all of its node. open_pipeline: what opens the pipeline in a worker, by default the
    artifacts at the path that they have here.

    The runner raises ValueError without ray, without a cluster, and for artifacts that a worker cannot run, with its node.
    """
    ray = _import_ray()

    def run(pipeline: Pipeline, tasks: Iterator[Task], options: Mapping[str, Any]) -> Iterator[Event]:
        opened = open_pipeline or partial(open_artifacts, str(pipeline.artifacts.folder.absolute()))
        size = group_size(pipeline, options)
        with _connected(ray, address):
            cluster = _Cluster(
                ray, partial(Worker, opened, pipeline.artifacts.keys, fingerprint("sam3d_tvm.batch")), threads, size, options
            )
            try:
                yield from cluster.run(deque(tasks))
            finally:
                cluster.close()

    return run


@dataclass(eq=False)
class _Slot:
    """A place for a worker: CPUs of a node. waits: for what, a reference or a generator of these; None if it has nothing to do.
    open: the tasks that it has, by number."""

    node: str
    address: str
    cpus: int
    actor: Any = None
    waits: Any = None
    name: str = ""
    begun: bool = False
    failed_starts: int = 0
    open: dict[int, Task] = field(default_factory=dict)


class _Cluster:
    """Gives groups of tasks to workers, and takes what they send."""

    def __init__(self, ray: Any, worker: Callable[..., Worker], threads: int | None, size: int, options: Mapping[str, Any]):
        self._ray, self._worker, self._size, self._options = ray, worker, size, dict(options)
        lost = ("RayActorError", "WorkerCrashedError", "ObjectLostError", "ActorUnschedulableError")
        self._dead = tuple(getattr(ray.exceptions, name) for name in lost)
        self._deaths: Counter[int] = Counter()
        self._slots = self._places(threads)
        if not self._slots:
            raise ValueError("ray: expected a cluster with CPUs, given one without")

    def _places(self, threads: int | None) -> list[_Slot]:
        slots = []
        for node in self._ray.nodes():
            cpus = int(node["Resources"].get("CPU", 0)) if node["Alive"] else 0
            each = cpus if threads is None else min(threads, cpus)
            slots += [_Slot(node["NodeID"], node["NodeManagerAddress"], each) for _ in range(cpus // each if each else 0)]
        return slots

    def run(self, pending: deque[Task]) -> Iterator[Event]:
        for slot in self._slots[: len(pending)]:
            self._start(slot)
        silent_since = time.monotonic()
        while pending or any(slot.open for slot in self._slots):
            yield from self._give(pending)
            waiting = {slot.waits: slot for slot in self._slots if slot.waits is not None}
            if not waiting:
                if pending:
                    raise ValueError("ray: expected a node with CPUs, but all that there were are gone: run again to go on")
                continue
            ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=1)
            if not ready and not any(slot.begun for slot in self._slots) and time.monotonic() - silent_since > SAY_AFTER:
                say("waiting for the first worker: are the CPUs of the cluster taken?")
                silent_since = float("inf")
            for waits in ready:
                slot = waiting[waits]
                try:
                    yield from self._take(slot)
                except self._dead:
                    yield from self._bury(slot, pending)

    def _start(self, slot: _Slot) -> None:
        """Starts a worker, which waits until the cluster has CPUs for it."""
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(slot.node, soft=False)
        actor = self._ray.remote(_Actor).options(num_cpus=slot.cpus, scheduling_strategy=strategy, max_restarts=0)
        slot.actor, slot.begun = actor.remote(self._worker, slot.cpus), False
        slot.waits = slot.actor.begin.remote()

    def _give(self, pending: deque[Task]) -> Iterator[Event]:
        """Gives each worker that has nothing to do its share of what is left, and half of it now, so that all end together."""
        for slot in self._slots:
            if not (pending and slot.begun and slot.waits is None):
                continue
            share = -(-len(pending) // (2 * len(self._slots)))
            packed = []
            while pending and len(packed) < min(share, self._size):
                alone = self._deaths[pending[0].number] > 0
                if alone and packed:
                    break
                task = pending.popleft()
                try:
                    packed.append(Packed.of(task, _written(task)))
                except OSError as error:  # its photo is gone since it was looked at
                    yield Event(task, row=failed(task.row, f"cannot read {error.filename!r}: {error.strerror}"))
                if alone:
                    break
            if packed:
                slot.open = {pack.task.number: pack.task for pack in packed}
                slot.waits = slot.actor.run.options(num_returns="streaming").remote(packed, self._options)

    def _take(self, slot: _Slot) -> Iterator[Event]:
        """Takes the next thing that a worker sends."""
        if not slot.begun:
            slot.name, problem = self._ray.get(slot.waits)
            if problem:
                raise ValueError(f"ray: worker {slot.name} on node {slot.address}: {problem}")
            slot.begun, slot.waits, slot.failed_starts = True, None, 0
            return
        try:
            sent: Sent = self._ray.get(next(slot.waits))
        except StopIteration:
            slot.waits = None
            return
        if sent.broken:
            raise OSError(f"ray: worker {slot.name} on node {slot.address}: {sent.broken}")
        task = slot.open[sent.number]
        for name, data in sent.files.items():
            write_bytes(task.folder / name, data)
        if sent.row is not None:
            del slot.open[sent.number]
        yield Event(task, sent.model, sent.row, sent.notes, slot.name)

    def _bury(self, slot: _Slot, pending: deque[Task]) -> Iterator[Event]:
        """What a dead worker had not done is given out again, and another one takes its place if its node is alive."""
        say(f"worker {slot.name or 'that was about to start'} on node {slot.address} died, its work is given out again")
        self._ray.kill(slot.actor)  # it may be that it cannot be reached
        lost, slot.open, slot.waits, slot.actor = list(slot.open.values()), {}, None, None
        if not slot.begun:
            slot.failed_starts += 1
            if slot.failed_starts >= STARTS:
                raise ValueError(f"ray: expected workers that start on node {slot.address}, but {STARTS} died: see Ray's logs")
        for task in reversed(lost):
            self._deaths[task.number] += 1
            if self._deaths[task.number] >= DEATHS:
                yield Event(task, row=failed(task.row, f"{DEATHS} workers died at it, as for want of memory"), worker=slot.name)
            else:
                pending.appendleft(task)
        if any(node["Alive"] and node["NodeID"] == slot.node for node in self._ray.nodes()):
            self._start(slot)
        else:
            self._slots.remove(slot)

    def close(self) -> None:
        """Ends the workers."""
        for slot in self._slots:
            if slot.actor is not None:
                self._ray.kill(slot.actor)


class _Actor(Worker):
    """A `Worker` made by what makes one."""

    def __init__(self, make: Callable[..., Worker], threads: int):
        self.__dict__ = make(threads).__dict__


def _written(task: Task) -> list[str]:
    """The files that an earlier run has written of a task, and their list."""
    run = RunFolder(task.folder, resume=True)
    names = [name for name in run.names[""] if (task.folder / name).is_file()]
    return [*names, RUN] if names else []


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """The cluster, for as long as the block runs, unless this process has already connected."""
    if ray.is_initialized():
        yield
        return
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    except (OSError, ValueError, RuntimeError) as error:
        asks = "AuthToken" in str(error.__cause__)
        text = " ".join(str(error).split()) + ("; it asks for a token: set RAY_AUTH_MODE=token" if asks else "")
        raise ValueError(f"ray: expected a cluster that exists, as of `ray start --head`, given {address!r}: {text}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """OSError where nobody listens at a host and port, which Ray itself would wait for for minutes."""
    if match := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:([0-9]{1,5})", address):
        socket.create_connection((match[1], int(match[2])), timeout=10).close()


def _import_ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise ValueError('ray: expected the package ray, as pip install "sam3d-tvm[ray]" installs it, given none') from error
    return ray
