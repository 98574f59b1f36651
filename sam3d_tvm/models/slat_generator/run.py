"""Runs the compiled structured-latent generator, the flow model that turns noise on active voxels into latents: on numpy.

The model consists of compiled parts, see `network`, which are called in turn here. What is constant over the steps of a
sampler is computed once: by `prepare` for a coordinate set and a condition, by `modulation` for the times of a schedule.
Weights are packed for the CPU once, one at a time.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import tvm

from sam3d_tvm.checks import check_coords, check_finite
from sam3d_tvm.models.slat_generator.config import ALL_SAVINGS, Savings, SlatConfig, preset
from sam3d_tvm.models.slat_generator.network import BLOCK, compile_model, part_parameters
from sam3d_tvm.models.slat_generator.random_weights import check_state, parameter_shapes, seeded_state
from sam3d_tvm.multi_view import MEAN, Views, mean
from sam3d_tvm.sampler import Evaluations, Guidance, Step, sample_flow
from sparse_ops.build import pack_params
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.weights import State, load_state
from sparse_ops.devices import placed
from sparse_ops.graphs import Captured
from sparse_ops.program import Program
from sparse_ops.transform.precision import features_of

MODULATION = "_modulation"
TIME_SCALE = 1000.0  # the model sees t in 0..1 times this

Arrays = Sequence[tvm.runtime.Tensor]
tensor = tvm.runtime.tensor


@dataclass(frozen=True)
class Level:
    """The voxels of one resolution: coordinates int32 [N, 4], their batch index [N], the kernel map if one is needed, and,
    but for the coarsest, the row of the next level that each belongs to, int32 [N]."""

    coords: tvm.runtime.Tensor
    batch_index: np.ndarray
    kernel_map: Arrays
    parent: tvm.runtime.Tensor | None


@dataclass(frozen=True)
class Condition:
    """Tokens [T, cond_channels], where those of each batch element start, int32 [B + 1], and the keys and values of every
    block, unless these are to be computed anew in every call."""

    tokens: tvm.runtime.Tensor
    offsets: tvm.runtime.Tensor
    context: Sequence[Arrays] | None


@dataclass(frozen=True)
class SlatPlan:
    """What `prepare` found for a coordinate set and a condition; all steps of a sampler share it.

    `rows` voxels in `batch` elements, on `levels` of which the first is the finest. The rest belongs to the weights of the
    `generator` that made it. `unconditional` is None where cross attention is a constant without a condition.
    """

    generator: "SlatGenerator"
    rows: int
    batch: int
    levels: Sequence[Level]
    offsets: tvm.runtime.Tensor  # int32 [B + 1], where batch elements start in the transformer
    positional: tvm.runtime.Tensor
    conditional: Condition
    unconditional: Condition | None

    @property
    def low_coords(self) -> np.ndarray:
        """The coordinates that the transformer works on, int32 [M, 4]."""
        return self.levels[-1].coords.numpy()

    @property
    def positions(self) -> np.ndarray:
        """Their positional embedding, float32 [M, model_channels]."""
        return self.positional.numpy()

    @property
    def context_bytes(self) -> int:
        """Memory of the keys and values of the conditions."""
        conditions = [condition for condition in (self.conditional, self.unconditional) if condition is not None]
        return sum(_bytes(array) for condition in conditions for arrays in condition.context or () for array in arrays)


@dataclass(frozen=True)
class Modulation:
    """What the model takes from the time, at `times` float32 [T], ascending: the embedding [T, model_channels], and by the
    name of a part, and the number of a block, tables of one row a time. It belongs to the weights of `generator`."""

    generator: "SlatGenerator"
    times: np.ndarray
    embedding: tvm.runtime.Tensor
    tables: Mapping[tuple[str, int], Arrays]

    def rows(self, t: np.ndarray) -> np.ndarray:
        """The row of every time, int32 of the shape of t. ValueError for a time that is not in the tables."""
        found = np.minimum(np.searchsorted(self.times, t), len(self.times) - 1)
        if (strange := self.times[found] != t).any():
            raise ValueError(f"t: expected times of the modulation, given {t[strange][0]:g}")
        return found.astype(np.int32)


class SlatGenerator:
    """The model with its weights, on numpy arrays.

        generator = SlatGenerator.from_preset("small", seed=0)
        latents = generator.sample(coords, cond, noise, steps=12, guidance=Guidance(strength=1.0))

    `state`: its weights by name; or the component that `network.slat_component` made of them, whose precision and code are
    taken. `vm`: what `compile_model` returned for the same config and options; compiled here if not given. `taps`: inner
    results that are kept in `tapped` by every call of `velocity`, for tests: "t_emb", "input_layer", "input_block{i}",
    "block0_in", "block{i}", "out_block{i}" and "before_out_layer". `options` as those of `compile_model`.

    Raises ValueError for a state that does not fit the config, see `check_state`, and for a tap of another name.
    """

    def __init__(
        self,
        config: SlatConfig,
        state: State | Component,
        vm: Program | None = None,
        taps: Sequence[str] = (),
        *,
        precision: str = "float32",
        savings: Savings = ALL_SAVINGS,
        sparse_backend: str = "native",
    ):
        self.config = config
        self.savings = savings
        self.sparse_backend = sparse_backend
        self.taps = tuple(taps)
        self.tapped: dict[str, np.ndarray] = {}
        _check_taps(config, taps)
        if isinstance(state, Component):
            self._vm, self._params = state.program, self._packed_by(state)
            self.dtype = state["add_constant"].spec.inputs[0].dtype
        else:
            check_state(config, state)
            self.dtype = features_of(precision)
            self._vm = vm or compile_model(config, precision=precision, savings=savings, sparse_backend=sparse_backend)
            self._params = self._pack(state)
        self._constants = self._find_constants() if savings.constant_unconditional else None

    def _packed_by(self, component: Component) -> dict[tuple[str, int], Arrays]:
        """The weights of every part as the component has them."""
        given = {spec.name: spec.shape for spec in component.manifest.parameters}
        if given != (expected := parameter_shapes(self.config)):
            strange = sorted(key for key, _ in given.items() ^ expected.items())
            raise ValueError(f"state: expected a component of this config, given one that differs in {', '.join(strange)}")
        found = {}
        for name in component.manifest.functions:
            part, _, block = name.partition(".")
            found[part, int(block or 0)] = component[name].packed
        return found

    def _pack(self, state: State) -> dict[tuple[str, int], Arrays]:
        """The weights of every part; those of the transformer's parts for every block."""
        parts, names = part_parameters(self.config)

        @lru_cache(maxsize=2)  # a layer that is cut reads its weight and bias for every part
        def read(index: int, block: int) -> tvm.runtime.Tensor:
            name = re.sub(r"^blocks\.0\.", f"blocks.{block}.", names[index])
            return tensor(np.asarray(state[name]).astype(np.float32, copy=False))

        return {
            (part, block): pack_params(self._vm, part, partial(read, block=block))
            for part in parts
            for block in range(self.config.num_blocks if part.startswith(BLOCK) else 1)
        }

    @property
    def weight_bytes(self) -> int:
        """Memory of the packed weights."""
        return sum(_bytes(array) for arrays in self._params.values() for array in arrays)

    def _find_constants(self) -> list[tvm.runtime.Tensor]:
        """What cross attention of every block adds to a row without a condition, [1, model_channels]: that of zeros."""
        one, zero = tensor(np.int32([0, 1])), np.zeros((1, self.config.model_channels), self.dtype)
        nothing = self._condition(np.zeros((1, self.config.cond_channels), np.float32), 1)
        return [
            self._call("block_cross", tensor(zero), *self._context(nothing, i), one, one, block=i)
            for i in range(self.config.num_blocks)
        ]

    @classmethod
    def from_preset(cls, name: str = "small", seed: int = 0, vm: Program | None = None, **options) -> "SlatGenerator":
        """A model of `PRESETS` with seeded random weights. ValueError for another name or a negative seed."""
        config = preset(name)
        return cls(config, seeded_state(config, seed), vm, **options)

    @classmethod
    def from_state(
        cls,
        config: SlatConfig | Mapping,
        state: State | str | os.PathLike,
        prefix: str = "",
        vm: Program | None = None,
        **options,
    ) -> "SlatGenerator":
        """A model of given weights: arrays by upstream's parameter names, or a .safetensors file of them.

        Only names that begin with `prefix` are looked at. Raises ValueError as `SlatConfig`, `load_state`, `check_state`.
        """
        config = config if isinstance(config, SlatConfig) else SlatConfig.from_dict(config)
        if isinstance(state, Mapping):
            state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        else:
            state = load_state(state, prefix)
        return cls(config, state, vm, **options)

    def prepare(self, coords: np.ndarray, cond: np.ndarray) -> SlatPlan:
        """Everything that is constant over the steps.

        coords int32 [N, 4] as (batch, x, y, z): every row once, x, y, z from 0 to resolution - 1, the rows of each of the B
        batch elements together and ascending by batch; an element may have none. cond float32 [B, L, cond_channels], B and L
        at least 1; with the dense sparse backend B must be 1. ValueError for anything else.
        """
        _check_array("cond", cond, np.float32, ("B", "L", self.config.cond_channels))
        batch, tokens, width = cond.shape
        if batch < 1 or tokens < 1:
            raise ValueError(f"cond: expected [B, L, C] with B and L of at least 1, given {list(cond.shape)}")
        if self.sparse_backend == "dense" and batch > 1:
            raise ValueError(f"cond: expected one batch element with the dense sparse backend, given {batch}")
        _check_array("coords", coords, np.int32, ("N", 4))
        check_coords(coords, batch, self.config.resolution)
        found, positions = self._call("prepare", tensor(coords))
        levels = [_level(arrays, last=i == self.config.levels) for i, arrays in enumerate(found)]
        offsets = np.searchsorted(levels[-1].batch_index, np.arange(batch + 1)).astype(np.int32)
        given = self._condition(cond.reshape(batch * tokens, width), batch)
        # All tokens of one element are zeros and weigh alike, so that one of them does for all.
        nothing = None if self._constants is not None else self._condition(np.zeros((batch, width), np.float32), batch)
        return SlatPlan(self, len(coords), batch, levels, self._tensor(offsets), positions, given, nothing)

    def with_condition(self, plan: SlatPlan, cond: np.ndarray) -> SlatPlan:
        """The plan of the same voxels with another condition, float32 [B, L, cond_channels] of as many elements and any number
        of tokens. ValueError for anything else."""
        self._check_own("plan", plan, SlatPlan)
        _check_array("cond", cond, np.float32, (plan.batch, "L", self.config.cond_channels))
        if cond.shape[1] < 1:
            raise ValueError(f"cond: expected [B, L, C] with L of at least 1, given {list(cond.shape)}")
        return replace(plan, conditional=self._condition(cond.reshape(-1, cond.shape[2]), plan.batch))

    def modulation(self, times: np.ndarray) -> Modulation:
        """What the model takes from the time, at all of `times` float32 [T], T at least 1; ValueError for anything else."""
        _check_array("times", times, np.float32, ("T",))
        if len(times) < 1:
            raise ValueError("times: expected at least one, given none")
        times = np.unique(times)
        embedding, emb = self._call("time", tensor(times))
        tables = {
            (name.removesuffix(MODULATION), block): self._call(name, emb, block=block)
            for name, block in self._params
            if name.endswith(MODULATION)
        }
        return Modulation(self, times, embedding, tables)

    def velocity(
        self,
        x: np.ndarray,
        t: float | np.ndarray,
        plan: SlatPlan,
        conditional: bool = True,
        modulation: Modulation | None = None,
    ) -> np.ndarray:
        """The model's dx/dt, float32 [N, out_channels].

        x float32 [N, in_channels]; t, the time multiplied by 1000, a number, float32 [B], or [1] for all elements of the batch;
        with `conditional` False the condition is left out, as upstream's guidance does it; `modulation`: that of times among
        which t is, found here if not given. ValueError for other shapes, dtypes or values.
        """
        return self._velocities(x, t, plan, modulation, [conditional])[0]

    def guided_velocities(
        self, x: np.ndarray, t: float | np.ndarray, plan: SlatPlan, modulation: Modulation | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The velocity with the condition and that without it, as `velocity` returns them; their common start is computed
        once."""
        return tuple(self._velocities(x, t, plan, modulation, [True, False]))

    def sample(
        self,
        coords: np.ndarray,
        cond: np.ndarray | Sequence[np.ndarray],
        noise: np.ndarray,
        steps: int = 25,
        guidance: Guidance | None = None,
        *,
        rescale_t: float = 1.0,
        solver: str = "euler",
        multi_view: str = MEAN,
        on_step: Callable[[Step], None] | None = None,
        evaluations: Evaluations | None = None,
    ) -> np.ndarray:
        """Latents float32 [N, out_channels] from noise float32 [N, in_channels]: see `prepare` and `sampler.sample_flow`.

        Several conditions are views of one object, which its latents follow as `multi_view` says, see `sam3d_tvm.multi_view`.
        evaluations: decides which velocities are evaluated, and counts them, see `sampler.Evaluations`.
        """
        conds = cond if isinstance(cond, (list, tuple)) else [cond]
        options = {"rescale_t": rescale_t, "solver": solver, "multi_view": multi_view, "on_step": on_step}
        options["evaluations"] = evaluations
        Views(len(conds), multi_view)  # before anything is prepared
        plan = self.prepare(coords, conds[0])
        plans = [plan, *(self.with_condition(plan, other) for other in conds[1:])]
        return self.sample_plan(plans, noise, steps, guidance, **options)

    def sample_plan(
        self,
        plan: SlatPlan | Sequence[SlatPlan],
        noise: np.ndarray,
        steps: int = 25,
        guidance: Guidance | None = None,
        *,
        multi_view: str = MEAN,
        on_step: Callable[[Step], None] | None = None,
        evaluations: Evaluations | None = None,
        **options,
    ) -> np.ndarray:
        """As `sample`, with what `prepare` returned in place of coordinates and condition, and for further views what
        `with_condition` did."""
        if self.config.in_channels != self.config.out_channels:
            raise ValueError(
                f"config: expected as many out_channels as in_channels {self.config.in_channels} to sample, "
                f"given {self.config.out_channels}"
            )
        plans = plan if isinstance(plan, (list, tuple)) else [plan]
        views = Views(len(plans), multi_view)
        plan = plans[0]
        for other in plans:
            self._check_own("plan", other, SlatPlan)
            if other.levels is not plan.levels:
                raise ValueError("plan: expected views of the same voxels, given plans that were prepared each for its own")
        _check_array("noise", noise, np.float32, (plan.rows, self.config.in_channels))
        table = self.modulation(_model_times(steps, **options)) if self.savings.modulation_table else None
        evaluations = Evaluations() if evaluations is None else evaluations
        unconditional = []  # the velocity that came with the last conditional one
        captured = [{} if table is not None and not self.taps else None for _ in plans]

        def velocity(x: np.ndarray, time: np.float32, conditional: bool) -> np.ndarray:
            if not conditional:  # called right after the conditional one
                return unconditional.pop() if unconditional else self._velocities(x, time, plan, table, [False], captured[0])[0]
            shared = self.savings.shared_start and evaluations.with_unconditional
            found = []
            for i in views.counting:
                branches = [True, False] if shared and not found else [True]
                given, *without = self._velocities(x, time, plans[i], table, branches, captured[i])
                unconditional.extend(without)
                found.append(given)
            return mean(found)

        options |= {"on_step": views.after_step(on_step, evaluations), "evaluations": evaluations}
        return sample_flow(velocity, noise, steps, guidance=guidance, time_scale=TIME_SCALE, **options)

    def _condition(self, tokens: np.ndarray, batch: int) -> Condition:
        """tokens float32 [T, cond_channels], equally many of every batch element."""
        offsets = np.arange(batch + 1, dtype=np.int32) * np.int32(len(tokens) // batch)
        condition = Condition(self._tensor(tokens), self._tensor(offsets), None)
        if not self.savings.context_once:
            return condition
        return replace(condition, context=[self._context(condition, i) for i in range(self.config.num_blocks)])

    def _context(self, condition: Condition, block: int) -> Arrays:
        """Keys and values of a block."""
        if condition.context is not None:
            return condition.context[block]
        return self._call("block_context", condition.tokens, block=block)

    def _velocities(
        self,
        x: np.ndarray,
        t: float | np.ndarray,
        plan: SlatPlan,
        modulation: Modulation | None,
        branches: Sequence[bool],
        captured: dict[tuple[bool, ...], Captured] | None = None,
    ) -> list[np.ndarray]:
        """The velocity of every branch, with the condition where it is True.

        `captured`: what calls with this plan and modulation share, by branches.
        """
        self._check_own("plan", plan, SlatPlan)
        _check_array("x", x, np.float32, (plan.rows, self.config.in_channels))
        times = np.full(1, t, np.float32) if np.ndim(t) == 0 else t
        _check_array("t", times, np.float32, (1,) if np.shape(times) == (1,) else (plan.batch,))
        times = np.repeat(times, plan.batch // len(times))
        modulation = self.modulation(times) if modulation is None else modulation
        self._check_own("modulation", modulation, Modulation)
        row = modulation.rows(times)
        self._record("t_emb", modulation.embedding, row)
        arrays = x, *(row[level.batch_index] for level in plan.levels)
        run = Captured(partial(self._run, plan, modulation, branches), self._vm.device, graphs=1)
        return run.plain(arrays) if captured is None else captured.setdefault(tuple(branches), run)(*arrays)

    def _run(
        self,
        plan: SlatPlan,
        modulation: Modulation,
        branches: Sequence[bool],
        x: tvm.runtime.Tensor,
        *time_index: tvm.runtime.Tensor,
    ) -> list[tvm.runtime.Tensor]:
        """The velocity of every branch; they part where the condition comes in. `time_index`: of the rows of each level."""

        def res_block(part: str, number: int, move: tuple[int, int], *features: tvm.runtime.Tensor) -> tvm.runtime.Tensor:
            source, target = (plan.levels[level] for level in move)
            change = [] if source is target else [source.coords, (source if move[0] < move[1] else target).parent]
            place = [target.coords, time_index[move[1]], *target.kernel_map]
            name = f"{part}{number}"
            h = self._call(name, *features, *modulation.tables[name, 0], *change, *place)
            self._record(name, h)
            return h

        def attend(h: tvm.runtime.Tensor, block: int) -> tvm.runtime.Tensor:
            tables = modulation.tables["block", block][:3]
            return self._call("block_attend", h, *tables, time_index[-1], plan.offsets, block=block)

        def cross(h: tvm.runtime.Tensor, block: int, conditional: bool) -> tvm.runtime.Tensor:
            if not conditional and self._constants is not None:
                return self._call("add_constant", h, self._constants[block])
            condition = plan.conditional if conditional else plan.unconditional
            return self._call("block_cross", h, *self._context(condition, block), plan.offsets, condition.offsets, block=block)

        h = self._call("input_layer", x)
        self._record("input_layer", h)
        skips = []
        for i, move in enumerate(self.config.input_moves):
            h = res_block("input_block", i, move, h)
            skips.append(h)
        h = self._call("add_positions", h, plan.positional)
        self._record("block0_in", h)
        start = attend(h, 0) if self.config.num_blocks else h
        results = []
        for conditional in branches:
            h = start
            for block in range(self.config.num_blocks):
                h = attend(h, block) if block else h
                h = cross(h, block, conditional)
                h = self._call("block_feed", h, *modulation.tables["block", block][3:], time_index[-1], block=block)
                self._record(f"block{block}", h)
            for i, (move, skip) in enumerate(zip(self.config.out_moves, reversed(skips), strict=True)):
                h = res_block("out_block", i, move, h, skip)
            h, out = self._call("out_layer", h)
            self._record("before_out_layer", h)
            results.append(out)
        return results

    def _record(self, name: str, value: tvm.runtime.Tensor, rows=slice(None)) -> None:
        if name in self.taps:
            self.tapped[name] = value.numpy()[rows]

    def _check_own(self, name: str, value, kind: type) -> None:
        """ValueError unless this generator made `value`: tensors of another one's weights would go unnoticed."""
        if not isinstance(value, kind):
            raise ValueError(f"{name}: expected a {kind.__name__} of this generator, given {type(value).__name__}")
        if value.generator is not self:
            raise ValueError(f"{name}: expected one that this generator prepared, given that of another")

    def _tensor(self, array: np.ndarray) -> tvm.runtime.Tensor:
        """An array where the code runs."""
        return placed(tensor(array), self._vm.device)

    def _call(self, part: str, *args: tvm.runtime.Tensor, block: int = 0):
        return self._vm[part](*args, *self._params[part, block])


def _bytes(array: tvm.runtime.Tensor) -> int:
    return int(np.prod(array.shape)) * array.dtype.itemsize


def _level(arrays: Arrays, last: bool) -> Level:
    coords, batch_index, *rest = arrays
    parent = None if last else rest.pop()
    return Level(coords, batch_index.numpy(), rest, parent)


def _model_times(steps: int, **options) -> np.ndarray:
    """The times at which `sample_flow` calls the model, float32 [calls]: it is let run without one."""
    times = []

    def velocity(x: np.ndarray, time: np.float32, conditional: bool) -> np.ndarray:
        times.append(time)
        return x

    sample_flow(velocity, np.zeros(1, np.float32), steps, time_scale=TIME_SCALE, **options)
    return np.array(times, np.float32)


def _check_taps(config: SlatConfig, taps: Sequence[str]) -> None:
    known = ["t_emb", "input_layer", *(f"input_block{i}" for i in range(len(config.input_moves))), "block0_in"]
    known += [f"block{i}" for i in range(config.num_blocks)]
    known += [*(f"out_block{i}" for i in range(len(config.out_moves))), "before_out_layer"]
    if unknown := [name for name in taps if name not in known]:
        raise ValueError(f"taps: expected names among {', '.join(known)}, given {', '.join(unknown)} too")


def _check_array(name: str, array: np.ndarray, dtype, shape: tuple) -> None:
    """ValueError unless `array` is finite and of `dtype` and `shape`, in which a name stands for any size."""
    expected = f"{np.dtype(dtype)} [{', '.join(map(str, shape))}]"
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name}: expected a numpy array {expected}, given {type(array).__name__}")
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        raise ValueError(f"{name}: expected {expected}, given {array.dtype} {list(array.shape)}")
    check_finite(name, array)
