"""`sampler`: flow matching and shortcut samplers with guidance, on an analytic velocity field.

Each entry of `config["cases"]` is one run; its tensors are `out.<name>.*`:
t_seq [steps + 1], t_passed and guided [conditional calls], x [steps, ...] (one for each key of a dict),
and for a shortcut model d [1] and d_passed [conditional calls].
"""

import numpy as np

from sam3d_tvm.sampler import Guidance, Step, flow_schedule, sample_flow, sample_shortcut
from tests.golden.case import Case, Tensors


def run(tensors: Tensors, config: dict) -> Tensors:
    out = {}
    for case in config["cases"]:
        out |= {f"out.{case['name']}.{key}": value for key, value in _run_one(case, tensors, config).items()}
    return out


def _run_one(case: dict, tensors: Tensors, config: dict) -> Tensors:
    cond = tensors["in.cond"]  # [B, L, C]
    prefix = "in.x0_dict."
    x0 = tensors["in.x0"]  # [B, T, C]
    if case.get("dict"):
        x0 = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    steps, time_scale = case["steps"], config["time_scale"]
    t_passed, d_passed, guided, states = [], [], [], []

    def velocity(x, time, conditional, d=None):
        if conditional:
            t_passed.append(time)
            guided.append(0)
            if d is not None:
                d_passed.append(d)
        else:
            guided[-1] = 1
        tokens = cond if conditional else 0 * cond
        if isinstance(x, dict):
            return {key: _velocity(x[key], time, tokens, d, i) for i, key in enumerate(sorted(x))}
        return _velocity(x, time, tokens, d, 0)

    def on_step(step: Step) -> None:
        states.append(step.x)

    settings = {
        "rescale_t": case["rescale_t"],
        "guidance": Guidance(case["strength"], case["interval"]),
        "solver": case.get("solver", "euler"),
        "time_scale": time_scale,
        "on_step": on_step,
    }
    result = {}
    if case["gen"] == "FlowMatching":
        sample_flow(velocity, x0, steps, **settings)
        result["t_seq"] = flow_schedule(steps, case["rescale_t"], np.float32)
    elif case["gen"] == "ShortCut":
        no_shortcut = case["no_shortcut"]
        sample_shortcut(
            lambda x, time, d, conditional: velocity(x, time, conditional, d),
            x0,
            steps,
            no_shortcut=no_shortcut,
            **settings,
        )
        result["t_seq"] = flow_schedule(steps, case["rescale_t"], np.float64)
        result["d"] = np.array([0.0 if no_shortcut else time_scale / steps])
        result["d_passed"] = np.array(d_passed, np.float32)
    else:
        raise ValueError(f"config.cases: expected gen FlowMatching or ShortCut, given {case['gen']!r}")
    result["t_passed"] = np.array(t_passed, np.float32)
    result["guided"] = np.array(guided, np.int64)
    if isinstance(x0, dict):
        result |= {f"x.{key}": np.stack([state[key] for state in states]) for key in x0}
    else:
        result["x"] = np.stack(states)
    return result


def _velocity(x: np.ndarray, time: np.float32, cond: np.ndarray, d: np.float32 | None, i: int) -> np.ndarray:
    """The field of `config["velocity"]`; x [B, T, C], cond [B, L, C'], C' >= C -> [B, T, C]."""
    f = x.dtype.type
    s = np.sin(f(0.004) * f(time))
    dd = f(0.001) * f(0 if d is None else d)
    m = cond.mean(axis=1, keepdims=True)[..., : x.shape[-1]]  # [B, 1, C]
    return (
        f(-0.7) * x * (f(1) + f(0.3) * s)
        + f(1 + 0.1 * i) * m * np.cos(f(0.003) * f(time))
        + f(0.5) * np.tanh(x) * s
        + f(0.8) * dd * np.sin(x)
    )


def depth(name: str, tensors: Tensors, config: dict) -> float:
    """Additions behind a value: two for a time; for x, one of each step, and the velocity's as guidance enlarges them.

    Every velocity counts by its share of the time, so that the errors of all of them average out with more steps.
    """
    for case in config["cases"]:
        if name.startswith(f"out.{case['name']}.x"):
            strength = case["strength"] if case["interval"] else 0
            terms = 4 + tensors["in.cond"].shape[1]  # of a velocity, and of the mean over tokens in it
            return case["steps"] + terms * (1 + 2 * strength) ** 2 / case["steps"]
    return 2.0


CASE = Case(run, depth)
