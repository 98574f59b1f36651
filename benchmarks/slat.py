"""The structured-latent generator: against PyTorch with spconv, its three sparse backends, what each saving saves.

    python -m benchmarks.slat [--quick] [--json FILE] [--only SUBSTRING]

    velocity             one call with the condition, fp32, bf16 and int8, against the reference in fp32
    guided_step          both, as a step with guidance takes them
    prepare, schedule    what a run computes once: maps, keys and values; modulations of 25 times
    backends             the native sparse backend against the dense one and the one in torch, all of them ours otherwise
    saving_<name>        with a saving against without it

Backends and savings are compared on a model of two transformer blocks, which are all alike; convolutions are all there.

The model has the sizes of SAM-3D-Objects (preset full, 5,496 tokens, 19,072 voxels), with --quick those of the demo on fewer
voxels (preset small, 257 tokens), which takes a minute once everything is compiled. The reference is
`tests.sam3d_tvm.slat_reference`, whose sparse convolutions run on one thread, as they are wrong with more; it computes the
same in every call, with or without a condition. A guided run of 25 steps is added up from its calls.

MB are what a call adds. What stays in memory is in the JSON: `weights_mb`, packed, and `context_mb`, keys and values.
"""

import functools
import gc
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from sam3d_tvm.models import slat_generator as slat
from sam3d_tvm.models.slat_generator import ALL_SAVINGS, SlatConfig
from sam3d_tvm.models.sparse_convolutions import SPARSE_BACKENDS
from sam3d_tvm.sampler import Guidance, flow_schedule
from sam3d_tvm.validate import BOUNDS
from tests.golden import case_slat_flow
from tests.sam3d_tvm.slat_reference import SlatReference
from tests.tolerance import Comparison, compare
from tir_kernels.spec import unique

from . import oracle
from .harness import Benchmark, Case, Peer, parse_options
from .peers import THREADS, use_threads
from .sparse_conv import SUBM3, coords_of

PRECISIONS = ("float32", "bfloat16", "int8")
STEPS, GUIDANCE = 25, Guidance(1.0)
TIME = np.float32(480.0)
LONG_WORK = 10_000  # channels x blocks from which a call takes many seconds
FEW_BLOCKS = 2  # of the transformer, where backends and savings are compared
NARROW_ERRORS = {precision: BOUNDS[precision][1] for precision in ("bfloat16", "int8")}  # relative L2
MARKS = {("velocity", "float32"): 2.5, ("velocity", "bfloat16"): 5.0, ("run", "float32"): 3.0, ("run", "bfloat16"): 6.0}


@dataclass(frozen=True)
class Workload:
    """A model with seeded weights, voxels, a condition and noise."""

    config: SlatConfig
    tokens: int
    occupancy: str

    @property
    def coords(self) -> np.ndarray:
        return coords_of(self.occupancy)

    @functools.cached_property
    def cond(self) -> np.ndarray:
        return np.random.default_rng(1).standard_normal((1, self.tokens, self.config.cond_channels), dtype=np.float32)

    @functools.cached_property
    def noise(self) -> np.ndarray:
        return np.random.default_rng(2).standard_normal((len(self.coords), self.config.in_channels), dtype=np.float32)

    @functools.cached_property
    def depth(self) -> float:
        """Additions behind a velocity."""
        return case_slat_flow.depths_of(self.config, self.coords, self.tokens, float(TIME))["y"]

    @functools.cached_property
    def flops(self) -> float:
        """Useful operations of a call with the condition whose keys and values are ready."""
        config, channels = self.config, self.config.model_channels
        levels = [self.coords]
        for _ in range(config.levels):
            levels.append(unique.naive(levels[-1], (2, 2, 2))[0])
        pairs = [int((oracle.table_of(level, level, SUBM3) >= 0).sum()) for level in levels]
        rows = len(levels[-1])
        block = 6 * channels * channels + 2 * channels * config.hidden + 2 * channels * (rows + self.tokens)
        multiplications = config.num_blocks * rows * block
        for moves, inputs in ((config.input_moves, 1), (config.out_moves, 2)):
            for source, target in moves:
                cin, cout = inputs * config.widths[source], config.widths[target]
                multiplications += pairs[target] * (cin + cout) * cout
        return 2.0 * multiplications


class Ours:
    """A generator with what it prepares once."""

    def __init__(self, work: Workload, precision: str = "float32", **options):
        self.work = work
        self.model = slat.SlatGenerator(work.config, slat.seeded_state(work.config, 0), precision=precision, **options)
        self.plan = self.prepare()
        self.table = self.schedule() if self.model.savings.modulation_table else None

    def prepare(self) -> slat.SlatPlan:
        return self.model.prepare(self.work.coords, self.work.cond)

    def schedule(self) -> slat.Modulation:
        times = flow_schedule(STEPS)[:-1] * np.float32(slat.TIME_SCALE)
        times[np.abs(times - TIME).argmin()] = TIME
        return self.model.modulation(times)

    def velocity(self, conditional: bool = True) -> np.ndarray:
        return self.model.velocity(self.work.noise, TIME, self.plan, conditional, self.table)

    def guided(self) -> np.ndarray:
        """Both velocities, [2, N, out_channels]."""
        if self.model.savings.shared_start:
            return np.stack(self.model.guided_velocities(self.work.noise, TIME, self.plan, self.table))
        return np.stack([self.velocity(True), self.velocity(False)])

    def facts(self) -> dict:
        return {"weights_mb": self.model.weight_bytes / 1e6, "context_mb": self.plan.context_bytes / 1e6}


class Reference:
    """PyTorch and spconv; `expected` with and without the condition, which is computed once."""

    def __init__(self, work: Workload):
        self.model = SlatReference.of(work.config, slat.seeded_state(work.config, 0))
        self.given = [torch.from_numpy(array) for array in (work.coords, work.noise, np.array([TIME]))]
        self.cond = torch.from_numpy(work.cond)
        self._found: dict[bool, np.ndarray] = {}

    def velocity(self, conditional: bool = True) -> np.ndarray:
        use_threads(THREADS)()
        return self.model(*self.given, self.cond if conditional else 0 * self.cond).numpy()

    def expected(self, conditional: bool) -> np.ndarray:
        if conditional not in self._found:
            self._found[conditional] = self.velocity(conditional)
        return self._found[conditional]


class Models:
    """What is in memory: one reference, and generators of ours until they are forgotten."""

    def __init__(self, work: Workload):
        self.work = work
        self.ours = functools.cache(functools.partial(Ours, work))
        self.reference = functools.cache(functools.partial(Reference, work))
        self.long = work.config.model_channels * work.config.num_blocks >= LONG_WORK

    def forget(self) -> None:
        """Give the memory of our generators back."""
        self.ours.cache_clear()
        gc.collect()


def check_against(expected: Callable[[], np.ndarray], depth: float, precision: str) -> Callable[[object], Iterable[Comparison]]:
    """float32 within the tolerance of its depth; narrower ones within their share of the whole."""

    def check(found: np.ndarray):
        result = compare(found, expected(), depth, name="velocity")
        if most := NARROW_ERRORS.get(precision):
            problem = "" if result.l2_error <= most else f"relative L2 above {most}"
            result = replace(result, bound=most, problem=problem)
        return [result]

    return check


def call_case(models: Models, precision: str, kind: str) -> Case:
    """`kind`: "velocity", against the reference, or "guided_step"."""
    ours, reference, peers = models.ours(precision), models.reference(), {}
    facts = ours.facts() | {"voxels": len(models.work.coords), "tokens": models.work.tokens}
    if kind == "guided_step":
        call = ours.guided
        expected = functools.cache(lambda: np.stack([reference.expected(True), reference.expected(False)]))
    else:
        call, expected = ours.velocity, functools.partial(reference.expected, True)
        right = check_against(expected, models.work.depth, "float32")
        peers["torch_spconv"] = Peer(reference.velocity, right, use_threads(THREADS), memory=True)

    def check(found: np.ndarray):
        result = check_against(expected, models.work.depth, precision)(found)
        facts["relative_l2"] = result[0].l2_error
        return result

    return Case(precision, call, check, peers, models.work.flops if peers else 0.0, facts, models.long)


def once_case(models: Models, precision: str, kind: str) -> Case:
    """ "prepare" or "schedule": the same bits as those with which the velocities were computed."""
    ours = models.ours(precision)
    known = {"prepare": lambda plan: plan.conditional.context[0][0], "schedule": lambda table: table.tables["block", 0][0]}[
        kind
    ]
    expected = known(ours.plan if kind == "prepare" else ours.table).numpy()

    def check(found):
        same = np.array_equal(known(found).numpy(), expected)
        return [replace(compare(expected, expected, name=kind), problem="" if same else "other bits than before")]

    return Case(precision, getattr(ours, kind), check)


def backends_case(models: Models) -> Case:
    """Native against the other backends, float32."""
    ours, peers, facts = models.ours("float32"), {}, {}
    check = check_against(lambda: models.reference().expected(True), models.work.depth, "float32")
    for backend in SPARSE_BACKENDS[1:]:
        other = models.ours("float32", sparse_backend=backend)
        peers[backend] = Peer(other.velocity, check, use_threads(THREADS), own_pool=backend == "dense", memory=True)
        facts |= {f"{backend}_{name}": value for name, value in other.facts().items()}
    return Case("float32", ours.velocity, check, peers, models.work.flops, facts | ours.facts())


def saving_case(models: Models, name: str) -> Case:
    """All savings against all but one, float32."""
    savings = replace(ALL_SAVINGS, **{name: False})
    ours, other = models.ours("float32"), models.ours("float32", savings=savings)
    if name == "shared_start":
        call, peer = ours.guided, other.guided
    else:
        conditional = name != "constant_unconditional"
        call, peer = (functools.partial(each.velocity, conditional) for each in (ours, other))
    expected = functools.cache(peer)
    check = check_against(expected, models.work.depth, "float32")
    peers = {"without": Peer(peer, check, own_pool=True)}
    return Case("float32", call, check, peers, facts={"blocks": models.work.config.num_blocks})


def run_cases(bench: Benchmark, work: Workload) -> None:
    models = Models(work)
    for precision in PRECISIONS:
        for kind in ("velocity", "guided_step"):
            bench.run(kind, functools.partial(call_case, models, precision, kind))
        for kind in ("prepare", "schedule"):
            bench.run(kind, functools.partial(once_case, models, precision, kind))
        models.forget()
    few = Models(replace(work, config=replace(work.config, num_blocks=min(FEW_BLOCKS, work.config.num_blocks))))
    bench.run("backends", functools.partial(backends_case, few))
    few.forget()
    for field in fields(ALL_SAVINGS):
        bench.run(f"saving_{field.name}", functools.partial(saving_case, few, field.name))
        few.forget()


def print_marks(bench: Benchmark) -> None:
    """A guided run added up from its calls, and what is asked for."""
    guided = sum(GUIDANCE.applies(time * np.float32(slat.TIME_SCALE)) for time in flow_schedule(STEPS)[:-1])
    say = functools.partial(bench.console.print, highlight=False, soft_wrap=True)
    for precision in PRECISIONS:
        rows = {row["case"]: row for row in bench.rows if row["dtype"] == precision}
        if not {"velocity", "guided_step", "prepare", "schedule"} <= rows.keys():
            continue
        seconds = {name: row["ours_ms"] / 1e3 for name, row in rows.items()}
        run = seconds["prepare"] + seconds["schedule"] + guided * seconds["guided_step"]
        run += (STEPS - guided) * seconds["velocity"]
        theirs = (STEPS + guided) * statistics.median(rows["velocity"]["peers"].values()) / 1e3
        rows["guided_step"] |= {"run_s": run, "reference_run_s": theirs, "run_ratio": theirs / run}
        say(
            f"{precision}: a run of {STEPS} steps, added up: prepare + schedule + {guided} guided steps + {STEPS - guided} "
            f"others = {run:.1f} s; reference, {STEPS + guided} calls: {theirs:.1f} s"
        )
        reached = {"velocity": rows["velocity"]["ratios"]["torch_spconv"], "run": theirs / run}
        for what, ratio in reached.items():
            target = MARKS.get((what, precision))
            verdict = f", asked for {target}x: {'reached' if ratio >= target else 'not reached'}" if target else ""
            say(f"  {what}: {ratio:.2f}x the reference{verdict}")
        say(f"  relative L2 of the velocity against the reference: {rows['velocity']['relative_l2']:.2e}")


def main(arguments: list[str] | None = None) -> int:
    options = parse_options("The structured-latent generator against PyTorch with spconv.", arguments)
    bench = Benchmark("slat", options)
    full, quick = Workload(slat.preset("full"), 5496, "nut_64"), Workload(slat.preset("small"), 257, "airplane_64")
    run_cases(bench, quick if options.quick else full)
    print_marks(bench)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
