"""Several photos of one object: how the velocities that a model has for each become the one that a sampler follows.

mean: at every evaluation, the mean of the velocities of all views. cycle: that of one view in each step, in the order in which
they are given, from the first on and over again; steps in which nothing is evaluated are nobody's turn.

The velocity without a condition is the same for all views and is computed once: guiding the mean is the mean of what is guided.

The public code has no such mode.
"""

from collections.abc import Callable, Sequence

import numpy as np

from sam3d_tvm.checks import check_choice, check_size
from sam3d_tvm.sampler import Evaluations, Step

MEAN, CYCLE = "mean", "cycle"
MODES = (MEAN, CYCLE)
MOST_VIEWS = 8


class Views:
    """Of `count` views in one run of a sampler, those that count in the step that it is at. ValueError for a count below 1 or
    above 8, and another mode."""

    def __init__(self, count: int, mode: str = MEAN):
        check_size("views", count, 1)
        if count > MOST_VIEWS:
            raise ValueError(f"views: expected at most {MOST_VIEWS}, given {count}")
        check_choice("multi_view", mode, MODES)
        self.count, self.mode, self._step = count, mode, 0

    @property
    def counting(self) -> Sequence[int]:
        """The numbers of the views whose velocities make up that of the object now."""
        return range(self.count) if self.mode == MEAN else (self._step % self.count,)

    def after_step(
        self, on_step: Callable[[Step], None] | None, evaluations: Evaluations | None = None
    ) -> Callable[[Step], None]:
        """What a sampler is to call after every step, so that it is known here; it calls `on_step`. evaluations: those of the
        sampler, if not every step has one."""

        def told(step: Step) -> None:
            self._step = step.index + 1 if evaluations is None else evaluations.steps
            if on_step is not None:
                on_step(step)

        return told


def mean(velocities: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of arrays of one shape, in their dtype: the same bits in any order, and for equal arrays theirs.

    They are added in float64, the smallest of each element first.
    """
    if len(velocities) == 1:
        return velocities[0]
    total = np.sort(np.stack(velocities), axis=0).sum(axis=0, dtype=np.float64)
    return (total / len(velocities)).astype(velocities[0].dtype)
