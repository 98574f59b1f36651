"""`pipeline_tiny`: the whole chain from a photo with a point map to Gaussians, at every boundary of a stage.

The compiled models are those of the preset "tiny", which has the sizes of the file; their weights are packed anew.
"""

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from sam3d_tvm.artifacts import compile_artifacts
from sam3d_tvm.config import PipelineConfig, Preprocessing, Sampling, preset
from sam3d_tvm.models.structure_decoder import StructureDecoder
from sam3d_tvm.models.structure_decoder.voxels import occupied_coords
from sam3d_tvm.pipeline import Run
from sam3d_tvm.pose import decode_pose
from sam3d_tvm.sampler import flow_schedule
from sam3d_tvm.splat.gaussians import raw_attributes
from tests.golden import depths
from tests.golden.case import Case, Tensors
from tests.sam3d_tvm.tiny_pipeline import copied_artifacts

GENERATORS = ("ss_generator", "slat_generator")
OFFSETS = "offset_perturbation"
# Of the file's state: no model of ours reads it.
LATENTS = ("6drotation_normalized", "scale", "shape", "translation", "translation_scale")


class GoldenSource:
    """The weights of the file."""

    def __init__(self, tensors: Tensors, config: PipelineConfig):
        self.config, self._tensors = config, tensors

    def state(self, name: str) -> Tensors:
        prefix = f"state.{name}." + ("reverse_fn.backbone." if name in GENERATORS else "")
        found = {key.removeprefix(prefix): value for key, value in self._tensors.items() if key.startswith(prefix)}
        return {key: value for key, value in found.items() if key != OFFSETS}

    def offset_perturbation(self, name: str) -> np.ndarray:
        return self._tensors[f"state.{name}.{OFFSETS}"]

    def identity(self, name: str) -> str:
        digest = hashlib.sha256()
        for key, value in sorted(self.state(name).items()):
            digest.update(key.encode() + value.tobytes())
        return digest.hexdigest()


def config_of(config: dict) -> PipelineConfig:
    """The preset, without what the file has not, sampled and preprocessed as the file was."""
    return replace(
        preset("tiny"),
        slat_decoder_mesh=None,
        ss_sampling=Sampling(config["steps"]["ss"], config["ss_cfg_strength"], config["ss_rescale_t"], config["cfg_interval"]),
        slat_sampling=Sampling(
            config["steps"]["slat"], config["slat_cfg_strength"], config["slat_rescale_t"], config["cfg_interval"]
        ),
        preprocessing=Preprocessing(size=config["preprocess_size"]),
        prune_distance=config["downsample_ss_dist"],
        slat_mean=tuple(config["slat_mean"]),
        slat_std=tuple(config["slat_std"]),
    )


def run(tensors: Tensors, config: dict) -> Tensors:
    with tempfile.TemporaryDirectory() as folder:
        source = GoldenSource(tensors, config_of(config))
        return _run(tensors, compile_artifacts(source, copied_artifacts(Path(folder) / "artifacts")))


def _run(tensors: Tensors, artifacts) -> Tensors:
    pipeline, out = artifacts.config, {}

    def on_step(stage: str, step) -> None:
        if stage == "latents":
            out[f"slat_step{step.index}"] = step.x[None].copy()
        else:
            out.update({f"ss_step{step.index}.{name}": value.copy() for name, value in step.x.items()})

    run = Run(artifacts, on_step=on_step)
    inputs = run.inputs(tensors["in.rgba"], None, tensors["in.pointmap"])
    out |= {f"ss_input.{name}": value for name, value in inputs.structure.items()}
    out |= {f"ss_input.{kind}_scale": inputs.scale for kind in ("pointmap", "rgb_pointmap")}
    out |= {f"ss_input.{kind}_shift": inputs.shift for kind in ("pointmap", "rgb_pointmap")}
    out["ss_cond"] = run.condition("ss_condition_embedder", inputs.structure)
    out["slat_cond"] = run.condition("slat_condition_embedder", inputs.slat)
    out["ss_t_seq"] = flow_schedule(pipeline.ss_sampling.steps, pipeline.ss_sampling.rescale_t, np.float64)
    out["slat_t_seq"] = flow_schedule(pipeline.slat_sampling.steps, pipeline.slat_sampling.rescale_t)

    noise = {name: tensors[f"in.ss_noise.{name}"] for name in LATENTS}
    latents = run.structure(out["ss_cond"], noise, pipeline.ss_sampling)
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
    """Of the chain up to `name`: what a call of each model adds. Steps add none: a sum of velocities times the lengths of
    their steps has the error of one velocity, which guidance of strength s makes 1 + 2 s times as large."""
    stage = name.removeprefix("out.").split(".")[0]
    if stage.startswith("ss_input"):
        return config["preprocess_size"] ** 2  # positions in float32 of as many pixels, see case_preprocess
    if stage.endswith("t_seq"):
        return 1.0
    channels = config["ss_flow"]["model_channels"]
    layers = 3 * depths.layer_norm(channels) + 8 * depths.linear(channels)
    condition = 2 * (layers + depths.attention(channels // 2, 100))
    if stage in ("ss_cond", "slat_cond"):
        return condition
    structure = 2 * (layers + depths.attention(channels // 2, 4096)) * (1 + 2 * config["ss_cfg_strength"]) ** 2
    latents = 2 * (layers + depths.attention(channels // 2, config["n_coords"])) * (1 + 2 * config["slat_cfg_strength"]) ** 2
    return condition + structure + (0 if stage.startswith(("ss_", "pose")) else latents)


CASE = Case(run, depth)
