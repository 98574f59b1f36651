"""Runs the compiled sparse-structure flow: noise to the latent of a coarse grid and those of the pose that belongs to it.

A mixture of transformers (Liang et al., arXiv:2411.04996): in every block the tokens of the shape have weights of their own,
and so has the stream that the tokens of all other latents make up. The functions that are called here in turn are compiled
from `network_torch`. What is constant over the steps of a sampler is computed once, by `prepare`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import tvm

from sam3d_tvm.checks import check_finite, check_size
from sam3d_tvm.models.structure_flow.config import SHAPE, StructureFlowConfig
from sam3d_tvm.multi_view import MEAN, Views, mean
from sam3d_tvm.sampler import Evaluations, Guidance, Sample, Step, sample_shortcut
from sparse_ops.deploy.component import Component
from sparse_ops.devices import placed
from sparse_ops.eager.arrays import as_tensor
from sparse_ops.graphs import Captured

TIME_SCALE = 1000.0  # the model sees t and d, each in 0..1, times this
GUIDANCE = Guidance(strength=7.0, interval=(0.0, 500.0))  # that of SAM-3D-Objects' pipeline

tensor = tvm.runtime.tensor


@dataclass(frozen=True)
class StructurePlan:
    """What `prepare` found for a condition: its tokens, and the keys and values of every block, which belong to the weights of
    `flow`. All steps of a sampler share it."""

    flow: "StructureFlow"
    batch: int
    cond: tvm.runtime.Tensor  # [B, L, cond_channels]
    context: Sequence[Sequence[tvm.runtime.Tensor]]  # [B, L, H, D], two for every block


class StructureFlow:
    """The model with its weights, on numpy arrays.

        flow = StructureFlow(Component.load("artifacts/structure_flow"), preset("full"))
        latents = flow.sample(noise=0, cond=cond)

    Latents are dicts of float32 [B, token_len, in_channels]. Raises ValueError for a component that is not this model, or has
    other latents than the config.
    """

    def __init__(self, component: Component, config: StructureFlowConfig):
        self.component = component
        self.device = component.program.device
        self.config = config
        given = {spec.name.removeprefix("latents."): spec.shape[1:] for spec in component["begin"].spec.inputs}
        expected = {name: (latent.token_len, latent.in_channels) for name, latent in config.latent_mapping.items()}
        if expected.items() - given.items():
            raise ValueError(f"component: expected tokens and channels of latents {expected}, given {given}")

    def prepare(self, cond: np.ndarray) -> StructurePlan:
        """What a condition float32 [B, L, cond_channels] of at least one token comes to. ValueError for another one."""
        _check_array("cond", cond, (None, None, self.config.cond_channels))
        if 0 in cond.shape:
            raise ValueError(f"cond: expected [B, L, C] with B and L of at least 1, given {list(cond.shape)}")
        cond = placed(tensor(cond), self.device)
        return StructurePlan(self, int(cond.shape[0]), cond, self.component["context"](cond))

    def velocity(
        self,
        latents: Mapping[str, np.ndarray],
        t: float | np.ndarray,
        d: float | np.ndarray | None,
        plan: StructurePlan,
        conditional: bool = True,
    ) -> dict[str, np.ndarray]:
        """The model's dx/dt, in the form of `latents`.

        t, d: time and length of the step, each times 1000, a number, float32 [B], or [1] for all elements of the batch; d = 0
        for steps of any length, None to leave its embedding out. With `conditional` False the condition is left out, as
        upstream's guidance does it. ValueError for other latents, shapes, dtypes or values.
        """
        return self._velocities(latents, t, d, plan, [conditional])[0]

    def guided_velocities(
        self,
        latents: Mapping[str, np.ndarray],
        t: float | np.ndarray,
        d: float | np.ndarray | None,
        plan: StructurePlan,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The velocity with the condition and that without it, as `velocity` returns them; their common start is computed
        once."""
        return tuple(self._velocities(latents, t, d, plan, [True, False]))

    def sample(
        self,
        noise: Mapping[str, np.ndarray] | int,
        cond: np.ndarray | StructurePlan | Sequence[np.ndarray | StructurePlan],
        steps: int = 25,
        guidance: Guidance | None = None,
        *,
        rescale_t: float = 3.0,
        shortcut: bool = False,
        multi_view: str = MEAN,
        on_step: Callable[[Step], None] | None = None,
        evaluations: Evaluations | None = None,
    ) -> dict[str, np.ndarray]:
        """Latents from noise, or from the seed of it, and a condition, or what `prepare` made of it.

        With `shortcut` the model is told the length of its steps, for which few of them do. `guidance` is `GUIDANCE` unless
        given, and none with `shortcut`.

        Several conditions are views of one object, of one batch size. The shape follows all of them as `multi_view` says, see
        `sam3d_tvm.multi_view`; it does not see the pose, which is that in the first view and follows the first alone. So the
        first is evaluated in every step, also where another has its turn.

        evaluations: decides which velocities are evaluated, and counts them, see `sampler.Evaluations`.

        ValueError as `prepare`, `velocity`, `multi_view.Views` and `sampler.sample_shortcut`, and for views of other batches.
        """
        given = cond if isinstance(cond, (list, tuple)) else [cond]
        views = Views(len(given), multi_view)
        plans = [one if isinstance(one, StructurePlan) else self.prepare(one) for one in given]
        plan = plans[0]
        if {other.batch for other in plans} != {plan.batch}:
            raise ValueError(f"cond: expected views of one batch size, given {[other.batch for other in plans]}")
        if not isinstance(noise, Mapping):
            check_size("noise", noise, 0)
            noise = self.noise(noise, plan.batch)
        if guidance is None and not shortcut:
            guidance = GUIDANCE
        evaluations = Evaluations() if evaluations is None else evaluations
        unconditional = []  # the velocity that came with the last conditional one
        captured = [{} for _ in plans]

        def velocity(x: Sample, time: np.float32, d: np.float32, conditional: bool) -> Sample:
            if not conditional:  # called right after the conditional one
                return unconditional.pop()
            branches = [True, False] if evaluations.with_unconditional else [True]
            given, *without = self._velocities(x, time, d, plan, branches, captured[0])
            unconditional.extend(without)
            others = {i: self._velocities(x, time, d, plans[i], [True], captured[i])[0] for i in views.counting if i}
            return given | {SHAPE: mean([others.get(i, given)[SHAPE] for i in views.counting])}

        return sample_shortcut(
            velocity,
            self._checked("noise", noise, plan),
            steps,
            rescale_t=rescale_t,
            guidance=guidance,
            no_shortcut=not shortcut,
            time_scale=TIME_SCALE,
            on_step=views.after_step(on_step, evaluations),
            evaluations=evaluations,
        )

    def noise(self, seed: int, batch: int = 1) -> dict[str, np.ndarray]:
        """Normal noise for every latent. ValueError for a negative seed or a batch below 1."""
        check_size("seed", seed, 0)
        check_size("batch", batch, 1)
        random = np.random.default_rng(seed)
        return {
            name: random.standard_normal((batch, latent.token_len, latent.in_channels), np.float32)
            for name, latent in self.config.latent_mapping.items()
        }

    def _velocities(
        self,
        latents: Mapping[str, np.ndarray],
        t: float | np.ndarray,
        d: float | np.ndarray | None,
        plan: StructurePlan,
        branches: Sequence[bool],
        captured: dict[tuple[bool, ...], Captured] | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """The velocity of every branch, with the condition where it is True.

        `captured`: what calls with this plan share, by branches.
        """
        latents = self._checked("latents", latents, plan)
        arrays = [*latents.values(), _times("t", t, plan.batch), *([] if d is None else [_times("d", d, plan.batch)])]
        run = Captured(partial(self._run, plan, branches), self.device, graphs=1)
        found = run.plain(arrays) if captured is None else captured.setdefault(tuple(branches), run)(*arrays)
        return [dict(zip(latents, found[i :: len(branches)], strict=True)) for i in range(len(branches))]

    def _run(self, plan: StructurePlan, branches: Sequence[bool], *tensors: tvm.runtime.Tensor) -> list[tvm.runtime.Tensor]:
        """The velocity of every latent in every branch, the branches side by side; they part where the condition comes in.

        `tensors`: those of the latents, the times, and the lengths of the step, unless their embedding is left out.
        """
        call, names = self.component, list(self.config.latent_mapping)
        t, *d = tensors[len(names) :]
        t_emb = call["embed_t"](t)
        d_emb = call["embed_d"](*d) if d else placed(tensor(np.zeros(t_emb.shape, np.float32)), t_emb.device)
        modulation = call["modulation"](t_emb, d_emb)
        streams = call["begin"](dict(zip(names, tensors, strict=False)), modulation)
        results = []
        for conditional in branches:
            if conditional:
                results.append(call["finish"](streams, modulation, plan.context, plan.cond))
            else:
                results.append(call["finish_unconditional"](streams, modulation))
        return [result[name] for name in names for result in results]

    def _checked(self, argument: str, latents: Mapping[str, np.ndarray], plan: StructurePlan) -> dict[str, np.ndarray]:
        """`latents` if they are those of the config, and the plan is of this model; or ValueError."""
        if not isinstance(plan, StructurePlan) or plan.flow is not self:
            raise ValueError(f"plan: expected what `prepare` of this model returned, given {type(plan).__name__}")
        expected = self.config.latent_mapping
        if not isinstance(latents, Mapping) or latents.keys() != expected.keys():
            given = ", ".join(map(str, latents)) if isinstance(latents, Mapping) else type(latents).__name__
            raise ValueError(f"{argument}: expected a dict of {', '.join(expected)}, given {given}")
        for name, latent in expected.items():
            _check_array(f"{argument}[{name!r}]", latents[name], (plan.batch, latent.token_len, latent.in_channels))
        return {name: latents[name] for name in expected}


def _times(name: str, value: float | np.ndarray, batch: int) -> np.ndarray:
    """float32 [B] of a number, of one in an array, or of so many."""
    times = np.full(batch, value, np.float32) if isinstance(value, Real) else value
    _check_array(name, times, (1,) if np.shape(times) == (1,) else (batch,))
    return np.repeat(times, batch // len(times))


def _check_array(name: str, array: Any, shape: tuple[int | None, ...]) -> None:
    """ValueError unless `array` is numpy's, finite, float32 and of `shape`."""
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name}: expected a numpy array, given {type(array).__name__}")
    as_tensor(array, name, ("float32",), shape)
    check_finite(name, array)
