"""Networks of steps: drawn from a palette, run eager and as one compiled graph, and compared with the oracle step by step."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from tvm.relax.frontend.nn import spec

import sparse_ops
from sparse_ops import nn
from sparse_ops.build import build
from sparse_ops.eager.arrays import as_tensor, dtype_of
from tests.tolerance import compare
from tir_kernels.spec.coordinate_index import COORDINATE_LIMIT

from . import steps
from .cloud import DTYPES, Cloud, numpy_dtype
from .oracle import TooFar, Voxels
from .steps import (
    MOST_ROWS,
    MOST_TERMS,
    STEPS,
    Convolution,
    Downsample,
    Linear,
    Plan,
    Step,
    Upsample,
    UpsampledConvolution,
    Wanted,
    to_kind,
    to_numpy,
)

PAGE = 50  # cases that share a palette
CONVOLUTIONS, OTHERS = 5, 10  # steps in it
CHANNELS = (1, 2, 3, 4, 6, 8, 12, 16, 17, 24, 32, 33, 48, 64, 65)
KINDS = ("numpy", "torch", "tvm")


class Failure(Exception):
    """What a case found, in words."""


@dataclass(frozen=True)
class Palette:
    """What the networks of one page are made of."""

    dims: int
    dtype: str
    cin: int  # of clouds
    channels: int  # from the first step on
    stems: list[Step]
    steps: list[Step]
    heads: list[Step]

    @classmethod
    def draw(cls, seed: int, page: int) -> "Palette":
        rng = np.random.default_rng([seed, page, 1])
        dims = int(rng.choice([1, 2, 3], p=[0.1, 0.15, 0.75]))
        dtype = str(rng.choice(DTYPES, p=[0.45, 0.3, 0.25]))
        cin, channels, cout = (int(n) for n in rng.choice(CHANNELS, 3))

        def draw(of: type[Step], a: int, b: int, **more) -> Step:
            return of.draw(rng, dims=dims, dtype=dtype, cin=a, cout=b, **more)

        known = [of for of in STEPS if dims in of.dimensions and of is not Convolution]
        chances = np.array([STEPS[of] for of in known])
        drawn = [known[i] for i in rng.choice(len(known), OTHERS, replace=False, p=chances / chances.sum())]
        if Downsample not in drawn and (Upsample in drawn or UpsampledConvolution in drawn):
            drawn.append(Downsample)
        forms = ["subm", "strided", "transposed", *[""] * (CONVOLUTIONS - 3)]  # "": any
        body = [draw(Convolution, channels, channels, form=form) for form in forms]
        body += [draw(of, channels, channels) for of in drawn]
        stems = [draw(Linear, cin, channels), draw(Convolution, cin, channels, form="subm")]
        heads = [draw(Linear, channels, cout), draw(Convolution, channels, cout)]
        return cls(dims, dtype, cin, channels, stems, body, heads)


@dataclass
class Outcome:
    """What a step returned, as numpy arrays of its own."""

    coords: np.ndarray | None = None  # [M, 1 + dims]
    feats: np.ndarray | None = None
    shape: tuple | None = None
    batch: int | None = None
    others: list[np.ndarray] = field(default_factory=list)
    refused: str | None = None

    def arrays(self) -> list[np.ndarray]:
        return [array for array in (self.coords, self.feats, *self.others) if array is not None]


@dataclass
class Network:
    """Case `index` of a seed: steps on a cloud, with weights."""

    seed: int
    index: int
    palette: Palette
    cloud: Cloud
    kind: str  # of its arrays
    special: bool  # whether there are NaN and infinities among the features
    steps: list[Step]
    weights: list[dict[str, np.ndarray]]

    @classmethod
    def draw(cls, seed: int, index: int) -> "Network":
        palette = Palette.draw(seed, index // PAGE)
        rng = np.random.default_rng([seed, index, 2])
        cloud = Cloud.draw(rng, palette.dims)
        special = bool(rng.random() < 0.08)
        taken, plans = [], [Plan(cloud.voxels())]

        def take(step: Step) -> None:
            made = step.bound(rng, plans)
            if made is None or (special and not made.takes_special):
                return
            if made.draws_voxels and min(plans[-1].out.shape or (1,)) < 1:  # nobody can make others on a grid without cells
                return
            try:
                plan = made.plan(plans)
            except TooFar:
                return
            if (plan.out.coords[:, 1:] >= COORDINATE_LIMIT).any() or max(plan.out.shape or (0,)) > COORDINATE_LIMIT:
                return
            terms = 0 if plan.table is None or made.probes else len(plan.table) * plan.out.rows * step.cin * step.cout
            if (plan.refusal and rng.random() < 0.7) or plan.out.rows > MOST_ROWS or terms > MOST_TERMS:
                return
            taken.append(made)
            plans.append(plan)

        if special:
            palette = replace(palette, cin=palette.channels)
        else:
            take(palette.stems[int(rng.integers(2))])
            if not taken:  # too much to multiply
                take(palette.stems[0])
        for _ in range(int(rng.integers(1, 7))):
            if plans[-1].refusal is None:
                take(palette.steps[int(rng.integers(len(palette.steps)))])
        if plans[-1].refusal is None and rng.random() < 0.3:
            take(palette.heads[int(rng.integers(2))])
        weights = [step.draw_weights(rng) for step in taken]
        return cls(seed, index, palette, cloud, str(rng.choice(KINDS)), special, taken, weights)

    @property
    def name(self) -> str:
        return f"{self.seed}:{self.index}"

    def __str__(self) -> str:
        lines = [f"case {self.name}: {self.palette.cin} channels of {self.palette.dtype}, {self.kind} arrays, {self.cloud}"]
        return "\n".join([*lines, *(f"  {i}. {step}" for i, step in enumerate(self.steps, 1))])

    def voxels(self, infers: bool = False) -> Voxels:
        return self.cloud.voxels(infers)

    def feats(self, voxels: Voxels) -> np.ndarray:
        return self.cloud.feats(voxels, self.palette.cin, self.palette.dtype, self.special)

    def plans(self, voxels: Voxels) -> list[Plan]:
        """Of the input and of every step up to the first that refuses."""
        plans = [Plan(voxels)]
        for step in self.steps:
            if plans[-1].refusal is None:
                plans.append(step.plan(plans))
        return plans

    def layers(self, kind: str | None = None) -> list:
        """What every step holds, over copies of the weights."""
        return [
            step.layer({name: to_kind(array, kind or self.kind) for name, array in weights.items()})
            for step, weights in zip(self.steps, self.weights, strict=True)
        ]

    def tensor(self, voxels: Voxels) -> sparse_ops.SparseTensor:
        """The input."""
        feats = to_kind(self.feats(voxels), self.kind)
        shape = None if voxels.shape is None else voxels.shape[3 - voxels.dims :]
        return sparse_ops.SparseTensor(feats, to_kind(voxels.given(), self.kind), shape, voxels.batch)

    def run(self, layers: list, plans: list[Plan], tensors: list, stop: int | None = None) -> list[Outcome]:
        """Continue behind the given tensors, which grow, up to step `stop`: the outcomes of the steps that were run."""
        outcomes = []
        for place in range(len(tensors), len(plans) if stop is None else min(stop + 1, len(plans))):
            step, plan = self.steps[place - 1], plans[place]
            if plan.skipped:
                tensors.append(tensors[-1])
                outcomes.append(observed(tensors[-1], []))
            elif plan.refusal is not None:
                outcomes.append(refused(lambda step=step, plan=plan, p=place: step.run(layers[p - 1], tensors, plan)))
                tensors.append(tensors[-1])
            else:
                x, others = step.run(layers[place - 1], tensors, plan)
                tensors.append(x)
                outcomes.append(observed(x, others))
        return outcomes

    def check(self, plans: list[Plan], first: np.ndarray, outcomes: list[Outcome], weights=None, eager: bool = True) -> None:
        """Failure unless every step did what the oracle makes of what it was given; `first`: features of the input."""
        feats, weights = [first], self.weights if weights is None else weights
        for place, (plan, got) in enumerate(zip(plans[1:], outcomes, strict=True), 1):
            step, where = self.steps[place - 1], f"step {place}, {self.steps[place - 1].kind}"
            if plan.refusal is not None:
                if got.refused is None or plan.refusal not in got.refused:
                    raise Failure(f"{where}: expected a ValueError with {plan.refusal!r}, got {got.refused!r}")
                return
            if got.refused is not None:
                raise Failure(f"{where}: refused: {got.refused}")
            wanted_coords = plan.out.given()
            if got.coords.shape != wanted_coords.shape or (got.coords != wanted_coords).any():
                raise Failure(f"{where}: other voxels: {differing(got.coords, wanted_coords)}")
            if eager:
                extent = plan.out.extent
                extent = extent if extent is None else extent[3 - plan.out.dims :]
                if got.batch != plan.out.batch or (plan.out.rows and got.shape != extent):
                    raise Failure(f"{where}: batch {got.batch}, shape {got.shape}, expected {plan.out.batch}, {extent}")
            if got.feats.dtype != numpy_dtype(self.palette.dtype):
                raise Failure(f"{where}: features of {got.feats.dtype}")
            if plan.skipped:
                feats.append(got.feats)
                continue
            with np.errstate(all="ignore"):
                wanted, others = step.expected(weights[place - 1], plan, feats)
                wanted = steps.same(feats[-1]) if wanted is None else wanted
                self._compare(f"{where}: features", got.feats, wanted)
                if len(others) != len(got.others):
                    raise Failure(f"{where}: {len(got.others)} other results, expected {len(others)}")
                for i, (array, other) in enumerate(zip(got.others, others, strict=True)):
                    self._compare(f"{where}: other result {i}", array, other)
            feats.append(got.feats)

    def _compare(self, name: str, got: np.ndarray, wanted: Wanted) -> None:
        expected = wanted.values
        if got.shape != expected.shape:
            raise Failure(f"{name}: shape {list(got.shape)}, expected {list(expected.shape)}")
        if wanted.depth == 0:
            if not np.array_equal(np.asarray(got, "float64"), np.asarray(expected, "float64"), equal_nan=True):
                raise Failure(f"{name}: {differing(got, expected)}")
            return
        dtype = got.dtype
        tiny = float(np.finfo("float32").tiny if dtype.itemsize == 4 else 6.2e-5 if dtype == "float16" else 1e-30)
        size = np.broadcast_to(np.asarray(wanted.size, "float64"), expected.shape)
        size = np.where(np.isfinite(size), np.maximum(np.maximum(size, np.abs(expected)), tiny), 1)
        size = np.where(np.isfinite(size), size, 1)
        # Sums are float32: a narrower type is rounded once, when it is stored.
        depth = wanted.depth if dtype.itemsize > 2 else 1
        found = compare(got.astype("float64") / size, expected / size, depth, dtype=dtype, scale=1.0)
        if not found.ok:
            raise Failure(
                f"{name} {list(got.shape)}: {found.problem}; largest error {found.max_error:.3e} of a value's size, "
                f"bound {found.bound:.3e}, depth {depth}; {differing(got, expected, size)}"
            )


def observed(x: sparse_ops.SparseTensor, others: list) -> Outcome:
    """A tensor and other arrays as copies that stay as they are."""
    shape = None if x.coordinates.unbounded else x.spatial_shape
    copies = [np.array(to_numpy(array)) for array in others]
    return Outcome(np.array(to_numpy(x.coords)), np.array(to_numpy(x.feats)), shape, x.batch_size, copies)


def refused(call: Callable) -> Outcome:
    """The words of the ValueError that a call raises."""
    try:
        call()
    except ValueError as error:
        return Outcome(refused=str(error))
    return Outcome()


def differing(got, expected, size=1.0) -> str:
    """The first place where arrays differ most."""
    got, expected = np.asarray(got, "float64"), np.asarray(expected, "float64")
    if got.shape != expected.shape:
        return f"shape {list(got.shape)}, expected {list(expected.shape)}"
    with np.errstate(all="ignore"):
        error = np.abs(got - expected) / size
        error[np.isnan(error)] = np.inf
        error[(got == expected) | (np.isnan(got) & np.isnan(expected))] = 0
    place = np.unravel_index(int(error.argmax()), error.shape)
    most = f"most at {[int(i) for i in place]}: {got[place]!r}, expected {expected[place]!r}"
    return f"{np.count_nonzero(error)} of {error.size} differ, {most}"


def equal(one: list[Outcome], other: list[Outcome]) -> str:
    """What differs between two runs, bit for bit; nothing: an empty string."""
    if len(one) != len(other):
        return f"{len(one)} steps against {len(other)}"
    for place, (a, b) in enumerate(zip(one, other, strict=True), 1):
        if (a.refused is None) != (b.refused is None):
            return f"step {place}: refused: {a.refused!r} against {b.refused!r}"
        if (a.shape, a.batch) != (b.shape, b.batch):
            return f"step {place}: shape and batch {a.shape}, {a.batch} against {b.shape}, {b.batch}"
        for i, (left, right) in enumerate(zip(a.arrays(), b.arrays(), strict=True)):
            if left.dtype != right.dtype or left.shape != right.shape or left.tobytes() != right.tobytes():
                return f"step {place}, array {i}: {differing(right, left)}"
    return ""


class Graph:
    """A network as one compiled function, for any number of rows."""

    def __init__(self, network: Network, lift_params: bool):
        self.network, self.plans = network, network.plans(network.voxels(infers=True))
        places = [place for place in range(1, len(self.plans)) if network.steps[place - 1].traces]
        steps_of = network.steps

        class Whole(nn.Module):
            def __init__(self):
                for place in places:
                    module = steps_of[place - 1].module()
                    if module is not None:
                        setattr(self, f"s{place}", module)

            def forward(self, feats, coords, sides):
                tensors, out, sides, plans = [nn.SymbolicSparseTensor.of(feats, coords, batch)], [], list(sides), graph.plans
                for place in range(1, len(plans)):
                    step = steps_of[place - 1]
                    if place not in places:
                        tensors.append(tensors[-1])
                        continue
                    own = {name: sides.pop(0) for name in plans[place].sides}
                    x, others = step.trace(getattr(self, f"s{place}", None), tensors, own, plans[place])
                    tensors.append(x)
                    out += [x.coords, x.feats, *others]
                    graph.counts[place] = len(others)
                return tuple(out)

        graph, batch, self.places, self.counts = self, network.cloud.batch, places, {}
        dtype = network.palette.dtype
        inputs = {
            "feats": spec.Tensor(["n", network.palette.cin], dtype),
            "coords": spec.Tensor(["n", 4], "int32"),
            "sides": tuple(
                spec.Tensor([f"{self._rows_of(place, name)}", *array.shape[1:]], dtype_of(array))
                for place in places
                for name, array in self.plans[place].sides.items()
            ),
        }
        module, parameters = Whole().export_tvm({"forward": inputs})
        self.program = build(module, lift_params=lift_params)
        values = {}
        for place in places:
            for name, value in steps_of[place - 1].parameters(network.weights[place - 1]).items():
                values[f"s{place}.{name}"] = value
        arrays = [values[name].reshape([int(n) for n in parameter.shape]) for name, parameter in parameters]
        tensors = [as_tensor(np.array(a), "parameter", (dtype_of(a),), a.shape) for a in arrays]
        self.parameters = self.program.pack_params("forward", tensors.__getitem__) if lift_params else tensors

    def _rows_of(self, place: int, name: str) -> str:
        """The name of the rows of an array that a step takes: one for all arrays of points."""
        of_points = {"points": "points", "batch_index": "points"}
        if self.network.steps[place - 1].kind == "Voxelize":
            of_points |= {"feats": "points"}
        elif name in ("feats", "coords"):
            of_points |= {"feats": "other", "coords": "other"}
        return f"s{place}_{of_points.get(name, name)}"

    def run(self, voxels: Voxels) -> tuple[list[Plan], np.ndarray, list[Outcome]]:
        """On other voxels, of as many batch elements: plans, features of the input and outcomes, as `Network.check` wants."""
        plans, feats = self.network.plans(voxels), self.network.feats(voxels)
        plans = plans[: len(self.plans)]
        sides = [array for place in self.places[: len(plans)] if place < len(plans) for array in plans[place].sides.values()]
        arrays = [feats, voxels.coords]
        tensors = [as_tensor(np.array(a), "input", (dtype_of(a),), a.shape) for a in arrays]
        others = [as_tensor(np.array(a), "side", (dtype_of(a),), a.shape) for a in sides]
        results = [np.array(to_numpy(out)) for out in self.program["forward"](*tensors, tuple(others), *self.parameters)]
        outcomes, before = [], Outcome(voxels.coords, feats)
        for place in range(1, len(plans)):
            if place in self.places:
                coords, out, *_ = results[:2]
                before = Outcome(coords, out, others=results[2 : 2 + self.counts[place]])
                results = results[2 + self.counts[place] :]
            outcomes.append(before if place in self.places else replace(before, others=[]))
        for place in range(1, len(plans)):
            if place not in self.places:
                plans[place] = replace(plans[place], skipped=True, refusal=None)
        return plans, feats, outcomes
