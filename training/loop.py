"""The loop of every training: a fixed number of steps, resumed where it was interrupted, with its progress in the log.

Random numbers of a step depend on the seed and the step's number alone, so that an interrupt changes nothing. Matrices inside
of blocks are trained by Muon (K. Jordan et al., 2024), all other parameters by AdamW; what is kept is their moving average.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from sparse_ops.deploy.files import save_safetensors

WARM_UP = 50  # steps
LEAST_RATE = 0.02  # of the rate, at the end
LARGEST_GRADIENT = 1.0
SMALLEST_SIDE = 8  # of a matrix for Muon
SAVE_EVERY = 240  # seconds


@dataclass(frozen=True)
class Rates:
    """Learning rates of matrices (Muon) and of the rest (AdamW); `level`: the part of all steps before they fall; `average`:
    how much of the moving average stays in a step."""

    matrices: float = 4e-3
    rest: float = 2e-3
    level: float = 0.3
    average: float = 0.995


class Randomness:
    """The random numbers of one step: `numpy` and `torch` generators."""

    def __init__(self, *seed: int):
        self.numpy = np.random.default_rng(seed)
        self.torch = torch.Generator().manual_seed(int(self.numpy.integers(2**62)))


def train(
    name: str,
    folder: Path,
    net: nn.Module,
    steps: int,
    step: Callable[[Randomness, float], Mapping[str, Tensor | float]],
    tell: Callable[[str], None],
    *,
    seed: int,
    rates: Rates = Rates(),
    average: nn.Module | None = None,
    check: Callable[[nn.Module], str] | None = None,
    check_every: int = 1000,
    tell_every: int = 100,
) -> None:
    """Train `net` and write its averaged weights as `folder`/`name`.safetensors. Does nothing where that file is.

    step(randomness, part): adds the gradients of one step to the net, `part` of all steps being done, and returns losses to
    tell of. average: of `averaged`, where steps make use of it. check(average): what to tell of the averaged net. Where
    training was interrupted it goes on from its last state.
    """
    done = folder / f"{name}.safetensors"
    if done.exists():
        return
    state_file = folder / f"{name}.state"
    average = averaged(net) if average is None else average
    optimizers = _optimizers(net, rates)
    first, spent = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        first, spent = state["step"], state["seconds"]
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        for (optimizer, _), saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        tell(f"{name}: goes on at step {first} of {steps}")
    else:
        tell(f"{name}: {sum(p.numel() for p in net.parameters())} parameters, {steps} steps")
    started = saved_at = time.monotonic()
    recent: dict[str, list[float]] = {}
    for number in range(first, steps):
        part = number / steps
        factor = min(1, (number + 1) / WARM_UP)
        if part > rates.level:
            factor *= LEAST_RATE + (1 - LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * (part - rates.level) / (1 - rates.level)))
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.zero_grad(set_to_none=True)
        for key, value in step(Randomness(seed, number), part).items():
            recent.setdefault(key, []).append(float(value))
        nn.utils.clip_grad_norm_(net.parameters(), LARGEST_GRADIENT)
        for optimizer, _ in optimizers:
            optimizer.step()
        with torch.no_grad():
            stays = min(rates.average, 1 - 5 / (number + 10))
            for old, new in zip(average.parameters(), net.parameters(), strict=True):
                old.lerp_(new, 1 - stays)
        now = time.monotonic()
        if (number + 1) % tell_every == 0 or number + 1 == steps:
            taken = spent + now - started
            left = (now - started) / (number + 1 - first) * (steps - number - 1)
            losses = ", ".join(f"{key} {np.mean(values):.4f}" for key, values in recent.items())
            tell(f"{name}: step {number + 1} of {steps}, {taken:.0f} s, {left / 60:.0f} min left: {losses}")
            recent.clear()
        if check is not None and ((number + 1) % check_every == 0 or number + 1 == steps):
            with torch.no_grad():
                tell(f"{name}: step {number + 1}: {check(average)}")
        if now - saved_at > SAVE_EVERY and number + 1 < steps:
            state = {"step": number + 1, "seconds": spent + now - started, "net": net.state_dict()}
            state |= {"average": average.state_dict(), "optimizers": [optimizer.state_dict() for optimizer, _ in optimizers]}
            torch.save(state, state_file.with_suffix(".partial"))
            state_file.with_suffix(".partial").replace(state_file)
            saved_at = now
    save_safetensors(done, {key: value.numpy() for key, value in average.state_dict().items()})
    state_file.unlink(missing_ok=True)


def averaged(net: nn.Module) -> nn.Module:
    """What `train` keeps the moving average of `net` in."""
    return copy.deepcopy(net).requires_grad_(False)


def _optimizers(net: nn.Module, rates: Rates) -> list[tuple[torch.optim.Optimizer, float]]:
    """With their rates."""
    matrices, rest = [], []
    for name, parameter in net.named_parameters():
        inner = parameter.ndim == 2 and "blocks" in name and min(parameter.shape) > SMALLEST_SIDE
        (matrices if inner else rest).append(parameter)
    found = [(torch.optim.AdamW(rest, lr=rates.rest, betas=(0.9, 0.98), weight_decay=0), rates.rest)]
    if matrices:
        muon = torch.optim.Muon(matrices, lr=rates.matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        found.append((muon, rates.matrices))
    return found


def saved_weights(folder: Path, name: str, prefix: str = "") -> dict[str, np.ndarray]:
    """Of what `train` wrote the parameters whose names begin with `prefix`, under the rest of their names."""
    arrays = load_file(folder / f"{name}.safetensors")
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
