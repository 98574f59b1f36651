"""`pipeline_tiny`: the whole chain from a photo, with a point map or without, to Gaussians, at every boundary of a stage.

The pipeline is that of the file: sizes and options are its `config`'s, latents those that there is noise for. Models that are
those of the preset "random-tiny" are not compiled again: their weights are packed anew.
"""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from sam3d_tvm.artifacts import compile_artifacts
from sam3d_tvm.config import PipelineConfig, Preprocessing, Sampling, preset
from sam3d_tvm.models.condition_embedder.config import CHANNELS, Embedder, EmbedderFuserConfig
from sam3d_tvm.models.gaussian_decoder import GaussianDecoderConfig
from sam3d_tvm.models.structure_decoder import StructureDecoder
from sam3d_tvm.models.structure_decoder.voxels import occupied_coords
from sam3d_tvm.pipeline import Run
from sam3d_tvm.pose import decode_pose
from sam3d_tvm.sampler import flow_schedule
from sam3d_tvm.splat.gaussians import offset_perturbation, raw_attributes
from tests.golden import (
    case_dino,
    case_embedder_fuser,
    case_point_patch_embed,
    case_pose_decoder,
    case_preprocess,
    case_slat_decoder_gs,
    case_slat_flow,
    case_ss_decoder,
    case_ss_flow,
)
from tests.golden.case import Case, Tensors
from tests.sam3d_tvm.tiny_pipeline import copied_artifacts

GENERATORS = ("ss_generator", "slat_generator")
OFFSETS = "offset_perturbation"  # of the file's state: no model of ours reads it
NOISE = "in.ss_noise."


class GoldenSource:
    """The weights of the file."""

    def __init__(self, tensors: Tensors, config: PipelineConfig):
        self.config, self._tensors = config, tensors

    def state(self, name: str) -> Tensors:
        prefix = f"state.{name}." + ("reverse_fn.backbone." if name in GENERATORS else "")
        found = {key.removeprefix(prefix): value for key, value in self._tensors.items() if key.startswith(prefix)}
        return {key: value for key, value in found.items() if key != OFFSETS}

    def offset_perturbation(self, name: str) -> np.ndarray:
        own = offset_perturbation(getattr(self.config, name).representation)
        return self._tensors.get(f"state.{name}.{OFFSETS}", own)

    def identity(self, name: str) -> str:
        digest = hashlib.sha256()
        for key, value in sorted(self.state(name).items()):
            digest.update(key.encode() + value.tobytes())
        return digest.hexdigest()


def config_of(config: dict, tensors: Tensors) -> PipelineConfig:
    """The pipeline of a file, sampled and preprocessed as the file was."""
    noise = _noise(tensors)
    latents = {"latent_mapping": {name: (value.shape[2], value.shape[1]) for name, value in noise.items()}}
    grid = {"grid": config["ss_flow"]["resolution"]}
    found = PipelineConfig(
        ss_condition_embedder=_fuser(config, "ss"),
        ss_generator=case_ss_flow.config_of(config["ss_flow"] | latents),
        ss_decoder=case_ss_decoder.config_of(config["ss_decoder"] | grid),
        slat_condition_embedder=_fuser(config, "slat"),
        slat_generator=case_slat_flow.config_of(config["slat_flow"]),
        slat_decoder_gs=case_slat_decoder_gs.config_of(GaussianDecoderConfig, config["slat_decoder_gs"]),
        ss_sampling=_sampling(config, "ss", config["use_stage1_distillation"]),
        slat_sampling=_sampling(config, "slat", config.get("use_stage2_distillation", False)),
        preprocessing=Preprocessing(
            config["preprocess_size"], config.get("box_size_factor", 1.2), config.get("padding_factor", 0.0)
        ),
        prune_distance=config["downsample_ss_dist"],
        slat_mean=tuple(config["slat_mean"]),
        slat_std=tuple(config["slat_std"]),
    )
    # The preset's own config where it is equal, as 4 and 4.0 are: its compiled code is found by how it is written.
    same = {name: model for name, model in preset("random-tiny").models.items() if model == getattr(found, name)}
    return replace(found, **same)


def _noise(tensors: Tensors) -> Tensors:
    """[B, T, C] by the name of the latent."""
    return {name.removeprefix(NOISE): value for name, value in tensors.items() if name.startswith(NOISE)}


def _fuser(config: dict, stage: str) -> EmbedderFuserConfig:
    """The embedders in the order of the inputs: each takes all of its kind, of which the whole ones are named rgb."""
    dino = config["dino"] | {"prenorm_features": config["dino"]["prenorm_features"][stage]}
    inputs: dict[str, list[tuple[str, str]]] = {}
    for name in config["embedder_order"][stage]:
        kind = next(kind for kind in sorted(CHANNELS, key=("pointmap", "mask", "image").index) if kind in name)
        inputs.setdefault(kind, []).append((name, "full" if name.startswith("rgb_") else "cropped"))
    embedders = [
        Embedder(
            kind,
            case_point_patch_embed.config_of(config["pointpatch"]) if kind == "pointmap" else case_dino.config_of(dino),
            tuple(names),
        )
        for kind, names in inputs.items()
    ]
    return EmbedderFuserConfig(tuple(embedders), config["projection_net_hidden_dim_multiplier"])


def _sampling(config: dict, stage: str, distilled: bool) -> Sampling:
    """Guidance has no strength for a distilled model, and where there is no interval."""
    interval = config["cfg_interval"]
    strength = 0 if distilled or interval is None else config[f"{stage}_cfg_strength"]
    return Sampling(config["steps"][stage], strength, config[f"{stage}_rescale_t"], interval or (0.0, 0.0))


def run(tensors: Tensors, config: dict) -> Tensors:
    with tempfile.TemporaryDirectory() as place:
        source, folder = GoldenSource(tensors, config_of(config, tensors)), Path(place) / "artifacts"
        if any(model in preset("random-tiny").models.values() for model in source.config.models.values()):
            copied_artifacts(folder)
        return _run(tensors, config["use_stage1_distillation"], compile_artifacts(source, folder))


def _run(tensors: Tensors, shortcut: bool, artifacts) -> Tensors:
    pipeline, out = artifacts.config, {}

    def on_step(stage: str, step) -> None:
        if stage == "latents":
            out[f"slat_step{step.index}"] = step.x[None].copy()
        else:
            out.update({f"ss_step{step.index}.{name}": value.copy() for name, value in step.x.items()})

    run = Run(artifacts, on_step=on_step)
    inputs = run.inputs(tensors["in.rgba"], None, tensors.get("in.pointmap"))
    for stage, arrays in (("ss", inputs.structure), ("slat", inputs.slat)):
        out |= {f"{stage}_input.{name}": value for name, value in arrays.items()}
    if inputs.scale is not None:
        out |= {f"ss_input.{kind}_scale": inputs.scale for kind in ("pointmap", "rgb_pointmap")}
        out |= {f"ss_input.{kind}_shift": inputs.shift for kind in ("pointmap", "rgb_pointmap")}
    out["ss_cond"] = run.condition("ss_condition_embedder", inputs.structure)
    out["slat_cond"] = run.condition("slat_condition_embedder", inputs.slat)
    out["ss_t_seq"] = flow_schedule(pipeline.ss_sampling.steps, pipeline.ss_sampling.rescale_t, np.float64)
    out["slat_t_seq"] = flow_schedule(pipeline.slat_sampling.steps, pipeline.slat_sampling.rescale_t)

    latents = run.structure(out["ss_cond"], _noise(tensors), pipeline.ss_sampling, shortcut)
    logits = StructureDecoder(artifacts.load("ss_decoder"), pipeline.ss_decoder).logits(latents["shape"])
    out["ss_logits_stride4"] = logits[:, :, 1::4, 2::4, 3::4]
    out["coords_original"] = occupied_coords(logits)
    coords, factors = run.voxels(latents["shape"])
    out["coords"], out["downsample_factor"] = coords, factors
    pose = decode_pose(latents, inputs.scale, inputs.shift)
    out |= {f"pose.{name}": getattr(pose, name) for name in ("translation", "scale")}
    out["pose.rotation"] = pose.rotation * np.sign((pose.rotation * tensors["out.pose.rotation"]).sum())  # either sign is right
    out["pose.scale_after_downsample_factor"] = pose.scaled(factors).scale

    feats = run.latents(coords, out["slat_cond"], tensors["in.slat_noise"][0], pipeline.slat_sampling)
    out["slat_feats"] = feats
    gaussians = run.gaussians("slat_decoder_gs", coords, feats)
    out["gs.ply"] = gaussians.columns()
    with run._model("slat_decoder_gs") as decoder:
        offsets = artifacts.offset_perturbation["slat_decoder_gs"]
        raw = raw_attributes(coords, decoder(coords, feats), decoder.config.resolution, decoder.config.representation, offsets)
    out |= {f"gs.{name}": value for name, value in raw.items()}
    return {f"out.{name}": value for name, value in out.items()}


def depth(name: str, tensors: Tensors, config: dict) -> float:
    """Of the chain up to `name`. What a flow is conditioned on counts once, as do its calls: a sum of velocities times the
    lengths of their steps has the error of the worst of them. Voxels are integers: no error of theirs comes through."""
    stage = name.split(".")[1]
    if stage.endswith("_input"):
        what = name.replace(f".{stage}.", f".{stage.removesuffix('_input')}.")
        return case_preprocess.depth(what, *_as_preprocess(tensors, config))
    if stage.endswith("t_seq"):
        return 1.0
    pipeline, coords = config_of(config, tensors), tensors["out.coords"]
    of_structure = stage.startswith(("ss_", "pose"))
    embedder = pipeline.ss_condition_embedder if of_structure else pipeline.slat_condition_embedder
    condition = _photo(tensors, config) + case_embedder_fuser.depths_of(embedder)["tokens"]
    if stage.endswith("_cond"):
        return condition
    if of_structure:
        length = 1000 / pipeline.ss_sampling.steps if config["use_stage1_distillation"] else 0.0
        flow = _sampled(
            pipeline.ss_sampling,
            np.float64,
            condition,
            lambda time: case_ss_flow.depths_of(pipeline.ss_generator, embedder.tokens, max(time, length))["y"],
        )
        decoder = case_ss_decoder.depths_of(pipeline.ss_decoder)["logits"]
        return flow + (case_pose_decoder.DEPTH if stage == "pose" else decoder if stage.startswith("ss_logits") else 0)
    flow = _sampled(
        pipeline.slat_sampling,
        np.float32,
        condition,
        lambda time: case_slat_flow.depths_of(pipeline.slat_generator, coords, embedder.tokens, time)["y"],
    )
    return flow + (case_slat_decoder_gs.depths_of(pipeline.slat_decoder_gs, coords)["out_feats"] if stage == "gs" else 0)


def _sampled(sampling: Sampling, dtype, condition: float, flow: Callable[[float], float]) -> float:
    """Of the worst call of a flow, with guidance of strength s: (1 + s) times one velocity, less s times another one that has
    no condition."""
    low, high = sampling.interval
    found = 0.0
    for time in 1000 * flow_schedule(sampling.steps, sampling.rescale_t, dtype)[:-1]:
        strength, own = sampling.strength if low <= time <= high else 0, flow(float(time))
        found = max(found, (1 + strength) ** 2 * (condition + own) + strength**2 * own)
    return found


def _as_preprocess(tensors: Tensors, config: dict) -> tuple[Tensors, dict]:
    """Tensors and config as a file of `case_preprocess` has them."""
    renamed = {name.replace("out.ss_input.", "out.ss."): value for name, value in tensors.items()}
    defaults = {"box_size_factor": 1.2, "padding_factor": 0.0}
    return renamed, defaults | config | {"size": config["preprocess_size"]}


def _photo(tensors: Tensors, config: dict) -> float:
    """Additions behind a pixel of the inputs."""
    names = [name for name in tensors if name.startswith("out.ss_input.") and tensors[name].ndim == 4]
    return max(depth(name, tensors, config) for name in names)


def scale(name: str, tensors: Tensors, config: dict) -> float | None:
    stage, what = name.split(".")[1:3] if name.count(".") > 1 else (name, "")
    if stage.endswith("_input"):
        return case_preprocess.scale(f"out.{stage.removesuffix('_input')}.{what}", *_as_preprocess(tensors, config))
    return None


CASE = Case(run, depth, scale)
