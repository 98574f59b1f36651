"""What happens to a program while it runs: each draws from the case's generator, runs the network again and compares.

"The same bits" is the law of the ops: on every run, with any number of threads, in whatever process or copy.
"""

import copy
import os
import pickle
import select
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

import sparse_ops
from sparse_ops.eager.arrays import kind_of

from .cloud import shuffled
from .network import Failure, Graph, Network, Outcome, differing, equal
from .oracle import rows_of
from .steps import Plan, to_kind, to_numpy

PATIENCE = 120  # seconds that a forked child may take


@dataclass
class Case:
    """A network that ran once and was right: what operations compare with."""

    network: Network
    rng: np.random.Generator
    layers: list
    tensor: sparse_ops.SparseTensor
    plans: list[Plan]
    outcomes: list[Outcome]

    def again(self, layers=None, tensor=None) -> list[Outcome]:
        """Another run; of the same tensor unless one is given, so that what was built for it is found."""
        tensor = self.tensor if tensor is None else tensor
        return self.network.run(self.layers if layers is None else layers, self.plans, [tensor])

    def expect_same(self, outcomes: list[Outcome], what: str) -> None:
        found = equal(self.outcomes, outcomes)
        if found:
            raise Failure(f"{what}: other bits: {found}")


def repeated(case: Case) -> None:
    """On the same tensor, whose maps are there, and on a new one."""
    case.expect_same(case.again(), "run again")
    case.expect_same(case.again(tensor=case.network.tensor(case.plans[0].out)), "run again from the start")


def one_thread(case: Case) -> None:
    most = sparse_ops.threads()
    sparse_ops.set_threads(1)
    try:
        outcomes = case.again(tensor=case.network.tensor(case.plans[0].out))
    finally:
        sparse_ops.set_threads(most)
    case.expect_same(outcomes, "one thread")


def many_threads(case: Case) -> None:
    """Several Python threads at once, with the same layers, on one tensor or on one each."""
    shared, results = bool(case.rng.random() < 0.5), {}
    start = threading.Barrier(4)

    def work(number: int) -> None:
        try:
            tensor = case.network.tensor(case.plans[0].out)
            tensor = one if shared else tensor
            start.wait()
            results[number] = case.again(tensor=tensor)
        except Exception:
            results[number] = traceback.format_exc()

    one = case.network.tensor(case.plans[0].out)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        if isinstance(results[number], str):
            raise Failure(f"four threads: {results[number]}")
        case.expect_same(results[number], f"four threads on {'one tensor' if shared else 'a tensor each'}")


def copied(case: Case) -> None:
    """Tensors and layers that went through a pickle or a deep copy, in the middle of the network."""
    how = [("deepcopy", copy.deepcopy), ("pickle", lambda value: pickle.loads(pickle.dumps(value)))]
    name, travel = how[int(case.rng.integers(2))]
    stop = int(case.rng.integers(0, max(len(case.plans) - 1, 1)))  # something is left to do
    tensors = [case.network.tensor(case.plans[0].out)]
    before = case.network.run(case.layers, case.plans, tensors, stop)
    tensors, layers = travel((tensors, case.layers))
    case.expect_same(before + case.network.run(layers, case.plans, tensors), f"{name} behind step {stop}")


def forked(case: Case) -> None:
    """The rest of the network in a child, while this process goes on."""
    if not hasattr(os, "fork"):
        return
    stop = int(case.rng.integers(0, max(len(case.plans) - 1, 1)))  # something is left to do
    tensors = [case.network.tensor(case.plans[0].out)]
    before = case.network.run(case.layers, case.plans, tensors, stop)
    there = list(tensors)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            answer = pickle.dumps(case.network.run(case.layers, case.plans, there))
        except BaseException:
            answer = pickle.dumps(traceback.format_exc())
        try:
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(answer)
        finally:
            os._exit(0)
    os.close(writing)
    try:
        here = case.network.run(case.layers, case.plans, tensors)
        answer = _all_of(reading)
        if answer is None:
            raise Failure(f"fork behind step {stop}: the child did not answer within {PATIENCE} s")
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if not answer:
        raise Failure(f"fork behind step {stop}: the child died, status {status}")
    there = pickle.loads(answer)
    if isinstance(there, str):
        raise Failure(f"fork behind step {stop}: {there}")
    case.expect_same(before + here, f"parent of a fork behind step {stop}")
    case.expect_same(before + there, f"child of a fork behind step {stop}")


def _all_of(pipe: int) -> bytes | None:
    """What comes through a pipe until it is closed; None where that takes too long."""
    parts = []
    while select.select([pipe], [], [], PATIENCE)[0]:
        part = os.read(pipe, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return None


def changed_weights(case: Case) -> None:
    """Weights that are written in place, by a power of two, so that all kinds of arrays hold the same."""
    network, factor = case.network, float(case.rng.choice([-0.5, 2.0, 0.0]))
    arrays = [{name: to_kind(array, network.kind) for name, array in weights.items()} for weights in network.weights]
    layers = [step.layer(own) for step, own in zip(network.steps, arrays, strict=True)]
    case.expect_same(case.again(layers), "layers made anew")
    writable = [(i, name) for i, own in enumerate(arrays) for name in own if "running_var" not in name]
    if not writable:
        return
    weights = [dict(own) for own in network.weights]
    for k in case.rng.choice(len(writable), min(2, len(writable)), replace=False):
        i, name = writable[int(k)]
        array = arrays[i][name]
        if kind_of(array) == "torch":
            array.mul_(factor)
        else:
            view = to_numpy(array)
            view *= view.dtype.type(factor)
        weights[i][name] = weights[i][name] * weights[i][name].dtype.type(factor)
    outcomes = case.again(layers)
    try:
        network.check(case.plans, network.feats(case.plans[0].out), outcomes, weights)
    except Failure as failure:
        raise Failure(f"weights times {factor} in place: {failure}") from None


def on_voxels(case: Case, voxels, words: str):
    """The network on other voxels, which must be right, or the failure begins with `words`. Yields for each step its place, the
    step, and its plan and outcome, each on the voxels as drawn and on these."""
    network = case.network
    plans = network.plans(voxels)
    outcomes = network.run(network.layers(), plans, [network.tensor(voxels)])
    try:
        network.check(plans, network.feats(voxels), outcomes)
    except Failure as failure:
        raise Failure(f"{words}: {failure}") from None
    pairs = zip(network.steps, case.plans[1:], plans[1:], case.outcomes, outcomes, strict=False)
    for place, (step, plan, other, a, b) in enumerate(pairs, 1):
        yield place, step, plan, other, a, b


def other_order(case: Case) -> None:
    """The same voxels in another order of rows: right, and as long as rows are computed by themselves with the same bits."""
    voxels = shuffled(case.plans[0].out, case.rng)
    for place, step, plan, other, a, b in on_voxels(case, voxels, "rows in another order"):
        if (not step.by_row and not step.probes) or a.refused or b.refused:
            return
        found = rows_of(other.out.coords, plan.out.coords)
        if (found < 0).any() or not np.array_equal(a.feats, b.feats[found], equal_nan=True):
            raise Failure(
                f"rows in another order: other bits behind step {place}, {step.kind}: {differing(b.feats[found], a.feats)}"
            )


def alone(case: Case) -> None:
    """One batch element without the others: the same bits."""
    first = case.plans[0].out
    if first.shape is None or not first.rows:  # other extents would be inferred
        return
    element = int(case.rng.choice(first.coords[:, 0]))
    voxels = replace(first, coords=np.ascontiguousarray(first.coords[first.coords[:, 0] == element]))
    for place, step, plan, other, a, b in on_voxels(case, voxels, f"element {element} alone"):
        if a.refused or b.refused or step.draws_voxels:
            return
        rows = plan.out.coords[:, 0] == element
        if not np.array_equal(plan.out.coords[rows], other.out.coords) or a.feats[rows].tobytes() != b.feats.tobytes():
            raise Failure(f"element {element} alone: other bits behind step {place}, {step.kind}")


def graph(case: Case) -> None:
    """The network as one compiled function, on its own voxels, on these in another order, on some of them and on none."""
    network = case.network
    built = Graph(network, lift_params=bool(case.rng.random() < 0.5))
    first = network.voxels(infers=True)
    some = case.rng.random(first.rows) < 0.4
    variants = {
        "as drawn": first,
        "in another order": shuffled(first, case.rng),
        "some rows": replace(first, coords=np.ascontiguousarray(first.coords[some])),
        "no rows": replace(first, coords=first.coords[:0]),
    }
    for name, voxels in variants.items():
        if any(plan.refusal for plan in network.plans(voxels)):
            continue
        try:
            network.check(*built.run(voxels), eager=False)
        except Failure as failure:
            raise Failure(f"graph, {name}: {failure}") from None
    one, other = built.run(first)[2], built.run(first)[2]
    if found := equal(one, other):
        raise Failure(f"graph run again: other bits: {found}")


def can_be_graph(case: Case) -> bool:
    network = case.network
    plans = network.plans(network.voxels(infers=True))
    return (
        network.palette.dims == 3
        and not any(plan.refusal for plan in plans)
        and all(step.traces or step.probes for step in network.steps)
    )


def refusals(case: Case) -> None:
    """Wrong input is a ValueError, before and after right input."""
    network, voxels = case.network, case.plans[0].out
    feats, coords = network.feats(voxels), voxels.given()
    shape = None if voxels.shape is None else voxels.shape[3 - voxels.dims :]

    def tensor(feats=feats, coords=coords, shape=shape, batch=voxels.batch):
        return sparse_ops.SparseTensor(to_kind(feats, network.kind), to_kind(coords, network.kind), shape, batch)

    def through(x):
        return lambda: (
            sparse_ops.SubMConv3d(network.palette.cin, 4, 3)(x()) if voxels.dims == 3 else x().coordinates.check_distinct()
        )

    wrong: dict[str, Callable] = {
        "float64 features": lambda: tensor(feats.astype("float64")),
        "one row more": lambda: tensor(np.zeros((len(feats) + 1, network.palette.cin), feats.dtype)),
        "int64 coordinates": lambda: tensor(coords=coords.astype("int64")),
        "five columns": lambda: tensor(coords=np.zeros((len(coords), 5), "int32")),
        "no batch elements": lambda: tensor(batch=0),
        "wrong channels": lambda: sparse_ops.BatchNorm1d(network.palette.cin + 1)(tensor()),
        "an array as a tensor": lambda: sparse_ops.SubMConv3d(3, 3, 3)(feats),
        "an even kernel": lambda: sparse_ops.SubMConv3d(3, 3, 2),
    }
    if len(coords):
        row = int(case.rng.integers(len(coords)))

        def moved(column: int, value: int):
            changed = coords.copy()
            changed[row, column] = value
            return changed

        twice = np.concatenate([coords, coords[row : row + 1]]), np.concatenate([feats, feats[row : row + 1]])
        wrong |= {
            "a row twice": through(lambda: tensor(twice[1], twice[0])),
            "batch index too large": lambda: tensor(coords=moved(0, voxels.batch)),
            "batch index negative": lambda: tensor(coords=moved(0, -1)),
            "a coordinate out of range": lambda: tensor(coords=moved(-1, 40000)),
        }
        if shape is not None:
            wrong["a coordinate outside of the grid"] = lambda: tensor(coords=moved(-1, shape[-1]))
            wrong["a coordinate below the grid"] = lambda: tensor(coords=moved(1, -1))
    for name in case.rng.permutation(sorted(wrong))[:4]:
        try:
            wrong[str(name)]()
        except ValueError as error:
            if len(str(error)) < 10:
                raise Failure(f"{name}: a ValueError that says {str(error)!r}") from None
            continue
        raise Failure(f"{name}: accepted")
    case.expect_same(case.again(), "run again after wrong input")


def always(case: Case) -> bool:
    return True


# Each with how often it is drawn, and for which cases it is.
OPERATIONS: dict[Callable[[Case], None], tuple[float, Callable[[Case], bool]]] = {
    repeated: (1, always),
    one_thread: (1, always),
    many_threads: (1, always),
    copied: (1.2, always),
    forked: (1, always),
    changed_weights: (1.2, always),
    other_order: (1.5, always),
    alone: (1, always),
    refusals: (0.5, always),
    graph: (0.5, can_be_graph),
}


def run_case(network: Network) -> list[str]:
    """Run a case and what happens to it; the names of the operations. Raises Failure."""
    rng = np.random.default_rng([network.seed, network.index, 3])
    layers, tensor = network.layers(), network.tensor(network.voxels())
    plans = network.plans(network.voxels())
    outcomes = network.run(layers, plans, [tensor])
    network.check(plans, network.feats(plans[0].out), outcomes)
    case, chances = Case(network, rng, layers, tensor, plans, outcomes), np.array([chance for chance, _ in OPERATIONS.values()])
    drawn = rng.choice(len(chances), 2, replace=False, p=chances / chances.sum())
    done = []
    for i in drawn:
        operation = list(OPERATIONS)[int(i)]
        if OPERATIONS[operation][1](case):
            try:
                operation(case)
            except Failure:
                raise
            except Exception as error:
                raise Failure(f"{operation.__name__}: {type(error).__name__}: {error}\n{traceback.format_exc()}") from error
            done.append(operation.__name__)
    return done
