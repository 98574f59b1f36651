"""`slat_decoder_gs`: from latents to raw features, and what these become: Gaussians, and the columns of their file.

`out.<name>` has those of all batch elements one after the other, `out.<element>.<name>` those of one.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np
from tvm.relax.frontend.nn import spec

from sam3d_tvm.models.gaussian_decoder import GaussianDecoderConfig, GaussianModel
from sam3d_tvm.models.slat_decoder import SlatDecoderConfig
from sam3d_tvm.splat.gaussians import Gaussians, offset_perturbation, raw_attributes
from sparse_ops.deploy.from_nn import component_from_nn
from sparse_ops.nn import Module
from tests.golden import depths
from tests.golden.case import Case, Tensors
from tir_kernels.spec import windows

BUFFER = "offset_perturbation"  # data of the representation among the parameters


def config_of(cls: type, config: dict) -> SlatDecoderConfig:
    """The fields that describe the model; a file's config also tells how the file was made."""
    return cls.from_dict({field.name: config[field.name] for field in fields(cls) if field.name in config})


def run_tapped(
    model: Module, forward: Callable, names: Sequence[str], types: Sequence, tensors: Tensors, given: Sequence[np.ndarray]
) -> tuple[object, Tensors]:
    """The result of `forward(*given, record)`, compiled with the parameters of a file, and all that was recorded as `mid.*`."""
    taps: dict = {}

    def function(*args):
        result = forward(*args, taps.__setitem__)
        return result, list(taps.values())

    state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    state.pop(BUFFER, None)
    functions = {"forward": spec.MethodSpec(function, list(names), list(types), "plain", "none")}
    result, recorded = component_from_nn(model, functions, "golden", state)(*given)
    return result, {f"mid.{name}": value for name, value in zip(taps, recorded, strict=True)}


def run(tensors: Tensors, config: dict) -> Tensors:
    model = GaussianModel(config_of(GaussianDecoderConfig, config))
    function = model.specs()["forward"]
    given = tensors["in.x"], tensors["in.coords"]
    feats, out = run_tapped(model, model.forward, function.arg_names, function.arg_specs, tensors, given)
    representation = model.config.representation
    starts = offset_perturbation(representation)
    perturbation, coords = tensors.get(f"state.{BUFFER}", starts), tensors["in.coords"]
    elements = {}
    for element in np.unique(coords[:, 0]):
        rows = coords[:, 0] == element
        elements[element] = decoded(coords[rows], feats[rows], model.config.resolution, representation, perturbation)
    found = {f"out.{element}.{name}": value for element, values in elements.items() for name, value in values.items()}
    names = next(iter(elements.values()), {})
    found |= {f"out.{name}": np.concatenate([values[name] for values in elements.values()]) for name in names}
    return out | found | {"mid.out_feats": feats, f"mid.{BUFFER}": starts}


def decoded(coords, feats, resolution, representation, perturbation) -> Tensors:
    """What the features of one batch element become, by upstream's names."""
    arguments = coords, feats, resolution, representation, perturbation
    gaussians, raw = Gaussians.from_features(*arguments), raw_attributes(*arguments)
    return raw | {
        "get_xyz": gaussians.xyz,
        "get_features": raw["_features_dc"],
        "get_scaling": gaussians.scaling,
        "get_rotation": gaussians.rotation,
        "get_opacity": gaussians.opacity[:, None],
        "get_covariance": gaussians.covariance,
        "ply": gaussians.columns(),
    }


def depth(name: str, tensors: Tensors, config: dict) -> float:
    found = depths_of(config_of(GaussianDecoderConfig, config), tensors["in.coords"])
    return found["out_feats" if name.startswith("out.") else name.split(".")[1]]


def scale(name: str, tensors: Tensors, config: dict) -> float | None:
    """An error of a feature becomes a relative one by the exponentials that turn it into a scale or an opacity."""
    if name.startswith("out.") and name.endswith((".get_scaling", ".get_opacity", ".get_covariance")):
        return float(np.abs(tensors[name]).max() * np.abs(tensors["mid.out_feats"]).max())
    return None


def depths_of(config: GaussianDecoderConfig, coords: np.ndarray) -> dict[str, float]:
    """Additions behind every tensor, along the model."""
    found = {BUFFER: 1.0} | transformer_depths(config, coords)
    found["before_out_layer"] = list(found.values())[-1] + depths.layer_norm(config.model_channels)
    return found | {"out_feats": found["before_out_layer"] + depths.linear(config.model_channels)}


def transformer_depths(config: SlatDecoderConfig, coords: np.ndarray) -> dict[str, float]:
    """Additions behind every tensor of the transformer, the last of them that of its result."""
    channels, so_far = config.model_channels, depths.linear(config.latent_channels)
    found = {"input_layer": so_far, "block0_in": so_far + 1}
    for i in range(config.num_blocks):
        shift = config.window_size // 2 * (i % 2)
        keys = int(np.diff(windows.naive(coords, (config.window_size,) * 3, (shift,) * 3)[1]).max(initial=1))
        so_far += 2 * depths.layer_norm(channels) + depths.attention(channels // config.heads, keys)
        so_far += 3 * depths.linear(channels) + depths.linear(config.hidden)
        found[f"block{i}"] = so_far
    return found


CASE = Case(run, depth, scale)
