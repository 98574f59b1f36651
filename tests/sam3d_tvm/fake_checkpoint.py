"""A checkpoint folder in the layout and naming of the published one, with the sizes and weights of the preset "random-tiny"."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from sam3d_tvm.artifacts import GAUSSIAN_DECODERS
from sam3d_tvm.checkpoint import DATA, GENERATORS, OFFSETS
from sam3d_tvm.checkpoint_files import PIPELINE
from sam3d_tvm.config import PipelineConfig, preset
from sam3d_tvm.models import MODELS
from sam3d_tvm.models.upstream import EMBEDDERS, TDFY

SEED = 1
LEARNT = "mm_latent.LearntPositionEmbedder"
# As published: with the decoder of few Gaussians, too.
_MANY = preset("random-tiny").slat_decoder_gs
_FEW = dataclasses.replace(_MANY, representation_config={**_MANY.representation_config, "num_gaussians": 2})
PUBLISHED = dataclasses.replace(preset("random-tiny"), slat_decoder_gs_4=_FEW)
TARGETS = {
    "slat_decoder_gs_4": TDFY + "structured_latent_vae.decoder_gs.SLatGaussianDecoderTdfyWrapper",
    "slat_decoder_gs": TDFY + "structured_latent_vae.decoder_gs.SLatGaussianDecoderTdfyWrapper",
    "slat_decoder_mesh": TDFY + "structured_latent_vae.decoder_mesh.SLatMeshDecoderTdfyWrapper",
}


def write_checkpoint(
    folder: Path, suffix: str = ".ckpt", dtype: torch.dtype = torch.float32, config: PipelineConfig | None = None
) -> Path:
    """The folder, with weights of `dtype` in files named `suffix`: .ckpt, .pt or .safetensors. `config`: that of the preset
    "random-tiny", or `PUBLISHED`."""
    config = preset("random-tiny") if config is None else config
    folder.mkdir(parents=True)
    for name, value in configs(config, suffix).items():
        write_yaml(folder / name, value)
    for stem in {MODELS[name].place.files for name in config.models}:
        write_state(folder / (stem + suffix), {name: tensor.to(dtype) for name, tensor in states()[stem].items()})
    return folder


def write_repository(root: Path) -> Path:
    """The root of the repository as it is downloaded, with the checkpoint in a folder of it."""
    write_checkpoint(root / "checkpoints", config=PUBLISHED)
    for name in ("README.md", "LICENSE", ".gitattributes", "checkpoints/ss_encoder.yaml"):
        (root / name).write_text("of no use here\n")
    return root


def write_hub_cache(root: Path, repository: Path, revisions: Mapping[str, bool]) -> Path:
    """`repository` as the cache of a hub keeps it, in the folder `root`: what files hold in blobs/, and links to it in
    snapshots/. `revisions`: their names, and whether refs/main is that one."""
    (root / "blobs").mkdir(parents=True)
    for revision, main in revisions.items():
        for file in repository.rglob("*"):
            if file.is_file():
                data = file.read_bytes()
                (root / "blobs" / (blob := hashlib.sha256(data).hexdigest())).write_bytes(data)
                link = root / "snapshots" / revision / file.relative_to(repository)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(os.path.relpath(root / "blobs" / blob, link.parent))
        if main:
            (root / "refs").mkdir()
            (root / "refs" / "main").write_text(revision)
    return root


def write_yaml(path: Path, value: Any) -> None:
    """`value`, tuples as lists."""
    path.write_text(yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False))


def write_state(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """A generator as its trainer saves it, among other things; a decoder as it is."""
    if path.suffix == ".safetensors":
        save_file(dict(state), path)
    else:
        torch.save({"state_dict": dict(state), "epoch": 3} if "generator" in path.stem else dict(state), path)


@cache
def states() -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of each file of weights, by its name without suffix."""
    found = {}
    for name, config in PUBLISHED.models.items():
        stem, _, prefix = MODELS[name].place
        state = MODELS[name].random_weights(config, SEED)
        tensors = {prefix + key: torch.from_numpy(np.array(value)) for key, value in state.items()}
        if name in GAUSSIAN_DECODERS:
            tensors[OFFSETS] = torch.from_numpy(MODELS[name].offset_perturbation(config))
        found.setdefault(stem, {}).update(tensors)
    return found


def configs(config: PipelineConfig, suffix: str = ".ckpt") -> dict[str, dict[str, Any]]:
    """The .yaml files by name."""
    stems = dict.fromkeys(MODELS[name].place.files for name in config.models)
    return {PIPELINE: _pipeline(config, stems, suffix)} | {
        "ss_generator.yaml": _ss_generator(config),
        "ss_decoder.yaml": _ss_decoder(config),
        "slat_generator.yaml": _slat_generator(config),
        **{
            f"{name}.yaml": {"_target_": target, **dataclasses.asdict(getattr(config, name))}
            for name, target in TARGETS.items()
            if name in config.models
        },
    }


def _pipeline(config: PipelineConfig, stems, suffix: str) -> dict[str, Any]:
    images = config.preprocessing
    crop = {
        "_target_": DATA + "img_and_mask_transforms.crop_around_mask_with_padding",
        "_partial_": True,
        "box_size_factor": images.box_size_factor,
        "padding_factor": images.padding_factor,
    }
    pad = {"_target_": DATA + "img_processing.pad_to_square_centered", "_partial_": True}
    resize = {"_target_": "torchvision.transforms.Resize", "size": images.size}
    compose = {"_target_": "torchvision.transforms.Compose", "transforms": [pad, resize]}
    preprocessor = {
        "_target_": DATA + "preprocessor.PreProcessor",
        "img_transform": compose,
        "mask_transform": compose,
        "img_mask_joint_transform": [crop],
    }
    points = {
        "pointmap_transform": compose,
        "img_mask_pointmap_joint_transform": [
            {"_target_": DATA + "img_and_mask_transforms.resize_all_to_same_size", "_partial_": True},
            crop,
        ],
        "normalize_pointmap": True,
        "pointmap_normalizer": {
            "_target_": DATA + "img_and_mask_transforms.ObjectCentricSSI",
            "use_scene_scale": True,
            "allow_scale_and_shift_override": True,
        },
    }
    files = {}
    for stem in stems:
        files |= {f"{stem}_config_path": f"{stem}.yaml", f"{stem}_ckpt_path": stem + suffix}
    sampling = {}
    for stage in ("ss", "slat"):
        values = getattr(config, f"{stage}_sampling")
        sampling |= {
            f"{stage}_inference_steps": values.steps,
            f"{stage}_cfg_strength": values.strength,
            f"{stage}_rescale_t": values.rescale_t,
            f"{stage}_cfg_interval": values.interval,
        }
    return {
        "_target_": "sam3d_objects.pipeline.inference_pipeline_pointmap.InferencePipelinePointMap",
        "version": "v0",
        "dtype": "bfloat16",
        "device": "cuda",
        "depth_model": {
            "_target_": "sam3d_objects.pipeline.depth_models.moge.MoGe",
            "model": {
                "_target_": "moge.model.v1.MoGeModel.from_pretrained",
                "pretrained_model_name_or_path": "Ruicheng/moge-vitl",
            },
        },
        **files,
        "ss_preprocessor": preprocessor | points,
        "slat_preprocessor": preprocessor,
        "pose_decoder_name": "ScaleShiftInvariant",
        "downsample_ss_dist": config.prune_distance,
        **sampling,
        "slat_mean": config.slat_mean,
        "slat_std": config.slat_std,
    }


def _generator(model: dict[str, Any], name: str, guidance: str, embedders) -> dict[str, Any]:
    guided = {
        "_target_": GENERATORS + f"classifier_free_guidance.{guidance}",
        "backbone": model,
        "strength": 2.0,
        "interval": [0, 500],
    }
    generator = {"_target_": GENERATORS + name, "reverse_fn": guided, "time_scale": 1000.0, "sigma_min": 0.0}
    return {
        "module": {
            "generator": {"backbone": generator, "lr": 1e-4},
            "condition_embedder": {"backbone": _fuser(embedders)},
        },
        "batch_size": 8,
    }


def _ss_generator(config: PipelineConfig) -> dict[str, Any]:
    flow = config.ss_generator
    latents = {}
    for name, latent in flow.latent_mapping.items():
        positions = {"_target_": TDFY + LEARNT, "model_channels": flow.model_channels, "token_len": latent.token_len}
        if name == "shape":
            positions = {"_target_": TDFY + "mm_latent.ShapePositionEmbedder", "model_channels": flow.model_channels}
            positions |= {"resolution": config.ss_decoder.resolution, "patch_size": 1}
        latents[name] = {"_target_": TDFY + "mm_latent.Latent", "in_channels": latent.in_channels, "pos_embedder": positions}
        latents[name]["model_channels"] = flow.model_channels
    sizes = {name: value for name, value in dataclasses.asdict(flow).items() if name != "latent_mapping"}
    target = TDFY + "mot_sparse_structure_flow.SparseStructureFlowTdfyWrapper"
    model = {"_target_": target, **sizes, "latent_mapping": latents, "qk_rms_norm": True, "is_shortcut_model": True}
    guidance = "ClassifierFreeGuidanceWithExternalUnconditionalProbability"
    return _generator(model, "shortcut.model.ShortCut", guidance, config.ss_condition_embedder)


def _slat_generator(config: PipelineConfig) -> dict[str, Any]:
    target = TDFY + "structured_latent_flow.SLatFlowModelTdfyWrapper"
    model = {"_target_": target, **dataclasses.asdict(config.slat_generator)}
    return _generator(model, "flow_matching.model.FlowMatching", "ClassifierFreeGuidance", config.slat_condition_embedder)


def _ss_decoder(config: PipelineConfig) -> dict[str, Any]:
    sizes = dataclasses.asdict(config.ss_decoder)
    del sizes["resolution"]
    target = TDFY + "sparse_structure_vae.SparseStructureDecoderTdfyWrapper"
    return {"_target_": target, "out_channels": 1, "norm_type": "layer", **sizes}


def _fuser(config) -> dict[str, Any]:
    embedders = []
    for embedder in config.embedders:
        sizes = dataclasses.asdict(embedder.model)
        if embedder.kind == "pointmap":
            taken = ("input_size", "patch_size", "embed_dim", "remap_output")
            model = {"_target_": EMBEDDERS + "pointmap.PointPatchEmbed", **{name: sizes[name] for name in taken}}
        else:
            own = {name: sizes.pop(name) for name in ("input_size", "prenorm_features")}
            model = {"_target_": EMBEDDERS + "dino.Dino", "dino_model": "dinov2_vits14_reg", **own, "backbone_kwargs": sizes}
        embedders.append([model, embedder.inputs])
    return {
        "_target_": EMBEDDERS + "embedder_fuser.EmbedderFuser",
        "embedder_list": embedders,
        "projection_net_hidden_dim_multiplier": config.projection_net_hidden_dim_multiplier,
        "use_pos_embedding": "learned",
    }
