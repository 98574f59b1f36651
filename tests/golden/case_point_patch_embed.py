"""`point_patch_embed`: tokens of a point map with pixels that have no point.

`mid.*` are inner results on the way to `out.tokens`; those whose name ends so are of the first three windows only.
"""

from dataclasses import fields
from functools import partial

import torch

from sam3d_tvm.models.condition_embedder import PointPatchConfig
from sam3d_tvm.models.condition_embedder.point_patch_embed_torch import PointPatchEmbed
from sparse_ops.deploy.from_torch import port_component
from tests.golden import depths
from tests.golden.case import Case, Tensors
from tests.golden.case_dino import block_depth, module_of


def config_of(config: dict) -> PointPatchConfig:
    """The fields that describe the model; a file's config also tells how the file was made."""
    return PointPatchConfig(**{field.name: config[field.name] for field in fields(PointPatchConfig) if field.name in config})


def run(tensors: Tensors, config: dict) -> Tensors:
    module = module_of(partial(PointPatchEmbed, config_of(config)), tensors)
    xyz = torch.from_numpy(tensors["in.xyz_pointmap"])
    compiled = port_component(module, {"stages": (xyz,), "embed": (xyz,)}, "point_patch_embed")
    found = {f"mid.{name}": value for name, value in compiled["stages"](tensors["in.xyz_pointmap"]).items()}
    found |= {f"{name}_first": value[:3] for name, value in found.items()}
    return found | {"out.tokens": compiled["embed"](tensors["in.xyz_pointmap"])}


def depth(name: str, tensors: Tensors, config: dict) -> float:
    found = depths_of(config_of(config))
    return found["tokens" if name.startswith("out.") else name.removeprefix("mid.").removesuffix("_first")]


def depths_of(config: PointPatchConfig) -> dict[str, float]:
    """Additions behind every tensor, along the model."""
    points = depths.linear(3)
    before = points + 1
    after = before + block_depth(config.embed_dim, config.num_heads, config.hidden, 1 + config.patch_size**2)
    found = {"resized_xyz": 1.0, "point_embed": points, "window_tokens_in": before, "window_tokens_out": after}
    return found | {"tokens": after + 1}


CASE = Case(run, depth)
