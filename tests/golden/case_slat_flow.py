"""`slat_flow`: the whole structured-latent generator, at several times, with its condition and without it.

`out.y` is the velocity at `in.t`, `out.y_t2` that at `in.t2`, and so on; `out.y_cfg` is `out.y` without the condition.
`mid.*` are inner results on the way to `out.y`.
"""

from dataclasses import fields

import numpy as np

from sam3d_tvm.models.slat_generator import SlatConfig, SlatGenerator
from tests.golden import depths
from tests.golden.case import Case, Tensors
from tir_kernels.spec import unique

OF_THE_PLAN = ("low_coords", "ape_low")  # the other inner results are those of a velocity


def config_of(config: dict) -> SlatConfig:
    """The fields that describe the model; a file's config also tells how the file was made."""
    return SlatConfig.from_dict({field.name: config[field.name] for field in fields(SlatConfig) if field.name in config})


def run(tensors: Tensors, config: dict, **options) -> Tensors:
    """`options`: how the generator is compiled."""
    state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    mids = [name.removeprefix("mid.") for name in tensors if name.startswith("mid.")]
    taps = [name for name in mids if name not in OF_THE_PLAN]
    generator = SlatGenerator(config_of(config), state, taps=taps, **options)
    x, cond = tensors["in.x"], tensors["in.cond"]  # [1, N, C]: rows of all batch elements; [B, L, C]
    rows, plan = x.reshape(-1, x.shape[-1]), generator.prepare(tensors["in.coords"], cond)

    def velocity(t: np.ndarray, conditional: bool = True) -> np.ndarray:
        return generator.velocity(rows, t.reshape(-1), plan, conditional).reshape(*x.shape[:-1], -1)

    out = {"out.y_cfg": velocity(tensors["in.t"], conditional=False)}
    for name in tensors:
        if name.startswith("in.t") and name != "in.t":
            out[f"out.y_{name.removeprefix('in.')}"] = velocity(tensors[name])
    out["out.y"] = velocity(tensors["in.t"])
    out |= {f"mid.{name}": value for name, value in generator.tapped.items()}
    if "t_emb" in taps:  # one row a time, of which there may be one for all elements
        out["mid.t_emb"] = out["mid.t_emb"][: tensors["in.t"].size]
    return out | {"mid.low_coords": plan.low_coords, "mid.ape_low": plan.positions}


def depth(name: str, tensors: Tensors, config: dict) -> float:
    times = [value.max() for key, value in tensors.items() if key.startswith("in.t")]
    found = depths_of(config_of(config), tensors["in.coords"], tensors["in.cond"].shape[1], max(times))
    return found["y" if name.startswith("out.") else name.removeprefix("mid.")]


def depths_of(config: SlatConfig, coords: np.ndarray, tokens: int, time: float) -> dict[str, float]:
    """Additions behind every tensor, along the model."""
    inner, widths = config.model_channels, (*config.io_block_channels, config.model_channels)
    head_dim = inner // config.heads
    levels = [coords]
    for _ in range(config.levels):
        levels.append(unique.naive(levels[-1], (2, 2, 2))[0])
    taps = [depths.neighbours(level) for level in levels]
    # One frequency in fifty is rounded the other way by another library, which moves its angle by `time` roundings:
    # over all of them, a tenth of that.
    emb = (0.1 * time) ** 2 + depths.linear(256) + depths.linear(inner)
    so_far = depths.linear(config.in_channels)
    found = {"t_emb": emb, "input_layer": so_far, "low_coords": 1.0, "ape_low": 1.0}
    so_far += emb
    blocks = iter(range(len(widths) * config.num_io_res_blocks))
    for level, width in enumerate(widths[:-1]):
        for last in (*[False] * (config.num_io_res_blocks - 1), True):
            so_far += depths.downsample() if last else 0
            cout = widths[level + 1] if last else width
            so_far += depths.resblock(width, cout, inner, taps[level + last])
            found[f"input_block{next(blocks)}"] = so_far
    found["block0_in"] = so_far = so_far + 1
    for i in range(config.num_blocks):
        so_far += 3 * depths.layer_norm(inner) + 3 * depths.linear(inner)  # norms, and modulation of two of them
        so_far += depths.attention(head_dim, depths.rows_of_element(levels[-1])) + 2 * depths.linear(inner)
        so_far += depths.attention(head_dim, tokens) + 2 * depths.linear(inner) + depths.linear(config.cond_channels)
        so_far += depths.linear(inner) + depths.linear(config.hidden)
        found[f"block{i}"] = so_far
    blocks = iter(range(len(widths) * config.num_io_res_blocks))
    for level in reversed(range(config.levels)):
        for first in (True, *[False] * (config.num_io_res_blocks - 1)):
            cin = 2 * (widths[level + 1] if first else widths[level])
            so_far += depths.resblock(cin, widths[level], inner, taps[level])
            found[f"out_block{next(blocks)}"] = so_far
    found["before_out_layer"] = so_far = so_far + depths.layer_norm(widths[0])
    return found | {"y": so_far + depths.linear(widths[0])}


def scale(name: str, tensors: Tensors, config: dict) -> float | None:
    """A position's angle is rounded at its own size, which is that of the coordinate."""
    if name == "mid.ape_low":
        return max(1.0, float(tensors["mid.low_coords"][:, 1:].max(initial=1)))
    return None


CASE = Case(run, depth, scale)
