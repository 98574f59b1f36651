"""`moge_model`: the depth model on photos of several shapes, all through one compiled component.

`mid.<case>.*` are inner results, of those cases that have them. The photo is resized here in numpy and Pillow, as a user's is.
"""

from functools import cache

import numpy as np

from sam3d_tvm.models.dinov2 import DinoV2Config
from sam3d_tvm.models.moge import DepthModel, MogeConfig
from sam3d_tvm.models.moge.network_torch import MoGeModel
from sam3d_tvm.models.moge.run import Sizes, arguments_of, shrunk, sizes_of
from sam3d_tvm.resize import resized_bilinear
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.from_torch import port_component
from tests.golden import depths
from tests.golden.case import Case, Tensors
from tests.golden.case_dino import block_depth
from tir_kernels.cpu.isa import Isa


class WithStages(MoGeModel):
    """Returns its inner results beside the points and the mask."""

    def forward(self, image, along_rows, along_columns, span, u, v):
        found = self.stages(image, along_rows, along_columns, span, u, v)
        return found | {"points": found["head_points"][0], "mask": found["head_mask"][0, 0]}


def config_of(config: dict) -> MogeConfig:
    plain = {"num_register_tokens": 0, "interpolate_antialias": False, "interpolate_offset": 0.1}
    return MogeConfig.from_upstream(config["model"], DinoV2Config(**config["vit"], **plain))


@cache
def _compiled(config: MogeConfig, isa: Isa) -> Component:
    """With parameters that are all zero."""
    module = WithStages(config).requires_grad_(False).eval()
    return port_component(module, module.inputs(), "moge", dynamic=module.dynamic(), check=False)


def component_of(tensors: Tensors, config: MogeConfig) -> Component:
    """With the parameters of a file; files of equal sizes share the code."""
    state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    return _compiled(config, Isa.of()).with_parameters(state)


def run(tensors: Tensors, config: dict) -> Tensors:
    sizes = config_of(config)
    component, out = component_of(tensors, sizes), {}
    model = DepthModel(component, sizes)
    mean, std = tensors["state.image_mean"][0], tensors["state.image_std"][0]
    for name, case in config["cases"].items():
        images, found = tensors[f"in.{name}.image"], []
        for image in images:
            points, mask = model.forward(image, case["num_tokens"])
            small = shrunk(image, grid := sizes_of(*image.shape[1:], case["num_tokens"]))
            inner = {key: np.asarray(x) for key, x in component(*arguments_of(small, grid, sizes.encoder)).items()}
            before = resized_bilinear(inner["points"], image.shape[1:])
            found.append(
                {f"mid.{name}.{key}": x[0] for key, x in inner.items() if key not in ("points", "mask")}
                | {
                    f"out.{name}.points": points,
                    f"out.{name}.mask": mask,
                    f"mid.{name}.image_resized": (small - mean) / std,
                    f"mid.{name}.head_in_stride5": inner["head_in"][0, ..., 2::5, 2::5],
                    f"mid.{name}.points_before_remap": before.transpose(1, 2, 0),
                }
            )
        out |= {key: np.stack([one[key] for one in found]) for key in found[0]}
        out[f"mid.{name}.pos_embed"] = out[f"mid.{name}.pos_embed_interpolated"][:1]
    return out


def depth(name: str, tensors: Tensors, config: dict) -> float:
    _, case, tensor = name.split(".")
    height, width = tensors[f"in.{case}.image"].shape[2:]
    found = depths_of(config_of(config), (height, width), sizes_of(height, width, config["cases"][case]["num_tokens"]))
    if tensor != "points":
        return found[tensor]
    # a e^c is off by as much of itself as c is off
    return found[tensor] * max(1.0, np.abs(tensors[f"mid.{case}.head_points"]).max()) ** 2


def depths_of(config: MogeConfig, photo: tuple[int, int], sizes: Sizes) -> dict[str, float]:
    """Additions behind every tensor, along the model."""
    vit, small = config.encoder, (sizes.height, sizes.width)
    whole = (sizes.rows * vit.patch_size, sizes.columns * vit.patch_size)
    # four taps for two, and the overshoot; each axis of its own
    resized = 2 * depths.resize(photo, small, antialias=True)
    positions = 2.0 * vit.stored_grid + vit.stored_grid**2  # two axes, and a place, which PyTorch rounds at its own size
    found = {"image_resized": resized + 1, "image_14": resized + depths.resize(small, whole, antialias=True) + 1}
    found |= {"pos_embed": positions, "patch_embed": found["image_14"] + depths.conv(3, vit.patch_size**2)}
    so_far = found["tokens_in"] = found["patch_embed"] + positions
    tokens = 1 + sizes.rows * sizes.columns
    for i in range(vit.depth):
        so_far = found[f"block{i}"] = so_far + block_depth(vit.embed_dim, vit.num_heads, vit.hidden, tokens)
    so_far += depths.layer_norm(vit.embed_dim)
    found |= {f"feature{i}": so_far for i in range(config.intermediate_layers)}
    so_far += depths.linear(vit.embed_dim) + config.intermediate_layers
    before, taps = config.dim_proj, 9
    for i, width in enumerate(config.dim_upsample):
        found[f"upsample{i}_in"] = so_far
        so_far += depths.conv(before + 2, 1) + depths.conv(width, taps)
        found[f"upsample{i}_conv"] = so_far
        hidden = width * config.dim_times_res_block_hidden
        norms = depths.layer_norm(width) + depths.layer_norm(hidden)
        so_far += config.num_res_blocks * (norms + depths.conv(width, taps) + depths.conv(hidden, taps) + 1)
        found[f"upsample{i}"], before = so_far, width
    grown = 2 ** len(config.dim_upsample)
    so_far += depths.resize((sizes.rows * grown, sizes.columns * grown), small)
    found["head_in_stride5"] = so_far
    so_far += depths.conv(before + 2, taps) + depths.conv(config.last_conv_channels, config.last_conv_size**2)
    found |= {"head_points": so_far, "head_mask": so_far}
    so_far += depths.resize(small, photo)
    return found | {"points_before_remap": so_far, "points": so_far, "mask": so_far}


CASE = Case(run, depth)
