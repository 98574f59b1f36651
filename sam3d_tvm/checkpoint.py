"""The checkpoint folder of SAM-3D-Objects as it is published: `pipeline.yaml`, and for each model a .yaml and its weights.

    pipeline.yaml                          the other files, how to sample, how to preprocess
    ss_generator.yaml, .ckpt               structure flow and its condition embedder
    slat_generator.yaml, .ckpt             SLAT flow and its condition embedder
    ss_decoder.yaml, .ckpt                 and slat_decoder_gs, slat_decoder_gs_4, slat_decoder_mesh

YAML is data here: strings at `_target_` are looked up in the table `TARGETS` and never imported. Weights are .safetensors, or
.ckpt, .pt or .pth, which need torch and are read without running what a pickle may hold.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sam3d_tvm.components.condition_embedder import DinoConfig, Embedder, EmbedderFuserConfig, PointPatchConfig
from sam3d_tvm.components.gaussian_decoder import GaussianDecoderConfig
from sam3d_tvm.components.mesh_decoder import MeshDecoderConfig
from sam3d_tvm.components.slat_config import SlatConfig
from sam3d_tvm.components.structure_decoder import StructureDecoderConfig
from sam3d_tvm.components.structure_flow import SHAPE, StructureFlowConfig
from sam3d_tvm.config import PipelineConfig, Preprocessing, Sampling
from sparse_ops.deploy.weights import DTYPES, LazyArray, load_state

PIPELINE = "pipeline.yaml"
OFFSETS = "offset_perturbation"  # saved with the Gaussian decoder, but no parameter of it
# Where a model lies: the key of pipeline.yaml that names its files, the path to it in its .yaml, and how the names of its
# weights begin.
GENERATOR = (("module", "generator", "backbone"), "_base_models.generator.reverse_fn.backbone.")
CONDITION = (("module", "condition_embedder", "backbone"), "_base_models.condition_embedder.")
PLACES = {
    "ss_condition_embedder": ("ss_generator", *CONDITION),
    "ss_generator": ("ss_generator", *GENERATOR),
    "ss_decoder": ("ss_decoder", (), ""),
    "slat_condition_embedder": ("slat_generator", *CONDITION),
    "slat_generator": ("slat_generator", *GENERATOR),
    "slat_decoder_gs": ("slat_decoder_gs", (), ""),
    "slat_decoder_gs_4": ("slat_decoder_gs_4", (), ""),
    "slat_decoder_mesh": ("slat_decoder_mesh", (), ""),
}
OPTIONAL = ("slat_decoder_gs_4",)
# What a checkpoint may hold that only training reads.
TRAINING = (".point_remapper.", ".dropped_xyz_token")
# The ViTs of DINOv2 with registers by the names of its hub: width, blocks, heads.
DINO_MODELS = {
    "dinov2_vits14_reg": (384, 12, 6),
    "dinov2_vitb14_reg": (768, 12, 12),
    "dinov2_vitl14_reg": (1024, 24, 16),
}


class Checkpoint:
    """A checkpoint folder: the config of its pipeline, and the weights of every model, read when they are asked for.

    Raises ValueError for a folder without `pipeline.yaml`, a file that is missing or cannot be read, a `_target_` that is not
    known, and models of other kinds or sizes than this package has. The message names the file and the place in it.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not (self.folder / PIPELINE).is_file():
            raise ValueError(f"checkpoint: expected a folder with {PIPELINE}, given {str(self.folder)!r}")
        pipeline = self._yaml(PIPELINE)
        options = _options(pipeline)
        self._files: dict[str, Path] = {}
        models, parsed = {}, {}
        for name, (stem, path, _) in PLACES.items():
            config_file, weights_file = (pipeline.get(f"{stem}_{kind}_path") for kind in ("config", "ckpt"))
            if config_file is None and name in OPTIONAL:
                continue
            for kind, file in (("config", config_file), ("ckpt", weights_file)):
                if not isinstance(file, str):
                    raise ValueError(f"{PIPELINE}: expected the name of a file at {stem}_{kind}_path, given {file!r}")
            if config_file not in parsed:
                parsed[config_file] = self._yaml(config_file)
            models[name] = _model(parsed[config_file], path, config_file, MODEL_TYPES[name])
            self._files[name] = self._file(weights_file)
        try:
            models["ss_decoder"] = _structure_decoder(models["ss_decoder"], models["ss_generator"])
            self.config = PipelineConfig(**models, **options)
        except ValueError as error:  # models that do not fit together
            raise ValueError(f"{PIPELINE}: {error}") from error

    def file(self, name: str) -> Path:
        """Where the weights of model `name` are."""
        return self._files[name]

    def state(self, name: str) -> dict[str, LazyArray]:
        """The weights of model `name`, read when they are asked for; ValueError then for one that is not finite."""
        return {key: value for key, value in self._state(name).items() if key != OFFSETS}

    def offset_perturbation(self, name: str) -> np.ndarray:
        """Where the Gaussians of a voxel begin, float32 [num_gaussians, 3], as saved with a Gaussian decoder."""
        state, expected = self._state(name), (getattr(self.config, name).representation_config["num_gaussians"], 3)
        if OFFSETS not in state or state[OFFSETS].shape != expected:
            given = list(state[OFFSETS].shape) if OFFSETS in state else "none"
            raise ValueError(f"{self.file(name).name}: expected {OFFSETS} {list(expected)}, given {given}")
        return np.asarray(state[OFFSETS], np.float32)

    def _state(self, name: str) -> dict[str, LazyArray]:
        file, prefix = self.file(name), PLACES[name][2]
        state = load_state(file) if file.suffix == ".safetensors" else _torch_state(file)
        found = {}
        for key, value in state.items():
            if key.startswith(prefix) and not any(part in f".{key}" for part in TRAINING):
                found[key.removeprefix(prefix)] = LazyArray(value.shape, value.dtype, _finite(value, key, file))
        return found

    def _file(self, name: str) -> Path:
        """A file of the folder. What lies elsewhere is not read: a checkpoint is one folder."""
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{PIPELINE}: expected files in the checkpoint's folder, given {name!r}")
        if not path.is_file():
            raise ValueError(f"checkpoint {str(self.folder)!r}: {name} is missing")
        return path

    def _yaml(self, name: str) -> Mapping[str, Any]:
        """A .yaml file, of which every `_target_` is known."""
        try:
            value = yaml.safe_load(self._file(name).read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{name}: not a YAML file: {' '.join(str(error).split())}") from error
        if not isinstance(value, Mapping):
            raise ValueError(f"{name}: expected names and values, given {type(value).__name__}")
        _check_targets(value, name)
        return value


def _finite(value: LazyArray, name: str, file: Path) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        array = np.asarray(value)
        if not np.isfinite(array).all():
            raise ValueError(f"{file.name}: expected finite weights, given NaN or infinity in {name}")
        return array

    return make


def _torch_state(file: Path) -> dict[str, LazyArray]:
    """The tensors of a file of torch: a dict of them, or a dict that has such a one as "state_dict"."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"{file.name}: torch is needed to read it, or convert it to .safetensors: {error}") from error
    try:
        try:
            value = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of torch before 1.6 cannot be mapped
            value = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are damaged, or hold more than tensors
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{file.name}: not a file of weights alone: {type(error).__name__}: {reason}") from error
    if isinstance(value, Mapping) and isinstance(value.get("state_dict"), Mapping):
        value = value["state_dict"]
    if not isinstance(value, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in value.values()):
        raise ValueError(f"{file.name}: expected tensors by name, given {type(value).__name__}")
    dtypes = {torch.float32: DTYPES["F32"], torch.float16: DTYPES["F16"], torch.bfloat16: DTYPES["BF16"]}
    return {
        name: LazyArray(tensor.shape, dtypes.get(tensor.dtype, np.dtype(object)), lambda tensor=tensor: tensor.float().numpy())
        for name, tensor in value.items()
    }


def _check_targets(node: Any, where: str) -> None:
    """ValueError for a `_target_` anywhere in `node` that is not in `TARGETS`."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if "_target_" in node and not (isinstance(target, str) and target in TARGETS):
            raise ValueError(
                f"{where}: _target_ {target!r} is not known; it is never imported, see sam3d_tvm.checkpoint.TARGETS"
            )
        children = node.items()
    else:
        children = enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        _check_targets(child, f"{where}: {key}" if ": " not in where else f"{where}.{key}")


def _model(value: Mapping[str, Any], path: tuple[str, ...], file: str, expected: type) -> Any:
    """The config of the model at `path` of a .yaml file."""
    node: Any = value
    for key in path:
        node = node.get(key) if isinstance(node, Mapping) else None
    where = f"{file}: {'.'.join(path)}" if path else file
    if node is None:
        raise ValueError(f"{where}: expected a model, given none")
    try:
        found = _built(node)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{where}: {reason}") from error
    if not isinstance(found, expected):
        given = node.get("_target_") if isinstance(node, Mapping) else node
        raise ValueError(f"{where}: expected a model that makes a {expected.__name__}, given {given!r}")
    return found


def _built(node: Any) -> Any:
    """What a node of a .yaml file says, inner ones first: mappings with a `_target_` are what `TARGETS` makes of them."""
    if isinstance(node, list):
        return [_built(child) for child in node]
    if not isinstance(node, Mapping):
        return node
    values = {str(key): _built(child) for key, child in node.items() if key not in HYDRA}
    return TARGETS[node["_target_"]](values) if "_target_" in node else values


def _pick(
    values: Mapping[str, Any], taken: tuple[str, ...], only: Mapping[str, Any], ignored: tuple[str, ...]
) -> dict[str, Any]:
    """The values of a model that are `taken`. ValueError for `only` if another value is given than the one that this package
    has, and for names that are in none of the three."""
    for name, value in only.items():
        if values.get(name, value) != value:
            raise ValueError(f"{name}: expected {value!r}, given {values[name]!r}")
    if unknown := sorted(values.keys() - {*taken, *only, *ignored}):
        raise ValueError(f"expected names among {', '.join([*taken, *only, *ignored])}, given {', '.join(unknown)} too")
    return {name: values[name] for name in taken if name in values}


def _wrapper(values: Mapping[str, Any]) -> Any:
    """A generator or its guidance: the model inside. How it is sampled pipeline.yaml says."""
    for name, value in {"time_scale": 1000.0, "sigma_min": 0.0, "solver_method": "euler", "reversed_timestamp": False}.items():
        if values.get(name, value) != value:
            raise ValueError(f"{name}: expected {value!r}, given {values[name]!r}")
    return values["reverse_fn"] if "reverse_fn" in values else values["backbone"]


def _structure_flow(values: Mapping[str, Any]) -> StructureFlowConfig:
    taken = ("model_channels", "cond_channels", "num_blocks", "num_heads", "mlp_ratio")
    only = {"pe_mode": "ape", "qk_rms_norm": True, "qk_rms_norm_cross": False, "share_mod": False, "patch_size": 1}
    only |= {"force_zeros_cond": True, "is_shortcut_model": True}
    training = ("use_fp16", "use_checkpoint", "freeze_d_time_embedder", "freeze_shared_parameters", "shape_attend_pose")
    rest = ("in_channels", "out_channels", "resolution", "num_head_channels", "condition_embedder")
    picked = _pick(values, (*taken, "latent_mapping", "latent_share_transformer"), only, (*training, *rest))
    return StructureFlowConfig(**picked)


def _latent(values: Mapping[str, Any]) -> tuple[int, int]:
    return values["in_channels"], values["pos_embedder"]


@dataclass(frozen=True)
class _StructureDecoder:
    """The decoder's own values; the resolution of its input is that of the generator's shape."""

    values: Mapping[str, Any]


def _structure_decoder(decoder: _StructureDecoder, flow: StructureFlowConfig) -> StructureDecoderConfig:
    tokens = flow.latent_mapping[SHAPE].token_len
    resolution = round(tokens ** (1 / 3))
    if resolution**3 != tokens:
        raise ValueError(f"ss_generator: expected a cube of tokens for the latent {SHAPE!r}, given {tokens}")
    return StructureDecoderConfig(resolution, **decoder.values)


def _ss_decoder(values: Mapping[str, Any]) -> _StructureDecoder:
    taken = ("latent_channels", "channels", "num_res_blocks", "num_res_blocks_middle")
    only = {"out_channels": 1, "norm_type": "layer", "reshape_input_to_cube": False}
    return _StructureDecoder(_pick(values, taken, only, ("use_fp16", "pretrained_ckpt_path")))


def _slat_model(config: type) -> Callable[[Mapping[str, Any]], Any]:
    ignored = ("condition_embedder", "pretrained_ckpt_path", "use_checkpoint")

    def make(values: Mapping[str, Any]) -> Any:
        return config.from_dict({name: value for name, value in values.items() if name not in ignored})

    return make


def _dino(values: Mapping[str, Any]) -> DinoConfig:
    name = values.get("dino_model")
    if name not in DINO_MODELS:
        raise ValueError(f"dino_model: expected one of {', '.join(DINO_MODELS)}, given {name!r}")
    ignored = ("dino_model", "repo_or_dir", "source", "freeze_backbone", "prune_network", "backbone_kwargs", "normalize_images")
    picked = _pick(values, ("input_size", "prenorm_features"), {}, ignored)
    sizes = dict(zip(("embed_dim", "depth", "num_heads"), DINO_MODELS[name], strict=True)) | {"img_size": 518}
    more = values.get("backbone_kwargs") or {}
    taken = ("embed_dim", "depth", "num_heads", "img_size", "patch_size", "num_register_tokens", "mlp_ratio")
    return DinoConfig(**sizes | picked | _pick(more, taken, {}, ("pretrained", "interpolate_antialias", "interpolate_offset")))


def _point_patch(values: Mapping[str, Any]) -> PointPatchConfig:
    taken = ("input_size", "patch_size", "embed_dim", "remap_output")
    return PointPatchConfig(**_pick(values, taken, {}, ("dropout_prob", "force_dropout_always")))


def _fuser(values: Mapping[str, Any]) -> EmbedderFuserConfig:
    only = {"use_pos_embedding": "learned", "projection_pre_norm": True, "compression_projection_multiplier": 0}
    training = ("freeze", "drop_modalities_weight", "dropout_prob", "force_drop_modalities")
    picked = _pick(values, ("projection_net_hidden_dim_multiplier",), only, ("embedder_list", *training))
    embedders = []
    for model, inputs in values["embedder_list"]:
        pairs = inputs[0] if len(inputs) == 1 and isinstance(inputs[0][0], list) else inputs
        names = [name for name, _ in pairs]
        kind = "pointmap" if isinstance(model, PointPatchConfig) else "mask" if names[0].endswith("mask") else "image"
        embedders.append(Embedder(kind, model, tuple((name, group) for name, group in pairs)))
    return EmbedderFuserConfig(tuple(embedders), **picked)


def _normalizer(values: Mapping[str, Any]) -> None:
    """How point maps are normalised: as `preprocess` does it, or ValueError."""
    only = {"use_scene_scale": True, "clip_beyond_scale": None, "scale_factor": 1.0}
    _pick(values, (), only, ("quantile_drop_threshold", "allow_scale_and_shift_override", "raise_on_no_valid_points"))


def _ignored(values: Mapping[str, Any]) -> None:
    """What has no part in what is computed here: training, the depth model, and transforms without sizes."""


def _as_is(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return values


HYDRA = ("_target_", "_partial_", "_recursive_", "_convert_")  # what its configs hold beside arguments
TDFY = "sam3d_objects.model.backbone.tdfy_dit.models."
GENERATORS = "sam3d_objects.model.backbone.generator."
EMBEDDERS = "sam3d_objects.model.backbone.dit.embedder."
DATA = "sam3d_objects.data.dataset.tdfy."
TARGETS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "sam3d_objects.pipeline.inference_pipeline_pointmap.InferencePipelinePointMap": _as_is,
    "sam3d_objects.pipeline.inference_pipeline.InferencePipeline": _as_is,
    "sam3d_objects.pipeline.depth_models.moge.MoGe": _ignored,
    "moge.model.v1.MoGeModel.from_pretrained": _ignored,
    "sam3d_objects.config.utils.make_dict": _as_is,
    GENERATORS + "shortcut.model.ShortCut": _wrapper,
    GENERATORS + "flow_matching.model.FlowMatching": _wrapper,
    GENERATORS + "flow_matching.model.lognorm_sampler": _ignored,
    GENERATORS + "classifier_free_guidance.ClassifierFreeGuidance": _wrapper,
    GENERATORS + "classifier_free_guidance.ClassifierFreeGuidanceWithExternalUnconditionalProbability": _wrapper,
    GENERATORS + "classifier_free_guidance.PointmapCFG": _wrapper,
    TDFY + "mot_sparse_structure_flow.SparseStructureFlowTdfyWrapper": _structure_flow,
    TDFY + "mm_latent.Latent": _latent,
    TDFY + "mm_latent.LearntPositionEmbedder": lambda values: values["token_len"],
    TDFY + "mm_latent.ShapePositionEmbedder": lambda values: (values["resolution"] // values["patch_size"]) ** 3,
    TDFY + "sparse_structure_vae.SparseStructureDecoderTdfyWrapper": _ss_decoder,
    TDFY + "structured_latent_flow.SLatFlowModelTdfyWrapper": _slat_model(SlatConfig),
    TDFY + "structured_latent_vae.decoder_gs.SLatGaussianDecoderTdfyWrapper": _slat_model(GaussianDecoderConfig),
    TDFY + "structured_latent_vae.decoder_mesh.SLatMeshDecoderTdfyWrapper": _slat_model(MeshDecoderConfig),
    EMBEDDERS + "embedder_fuser.EmbedderFuser": _fuser,
    EMBEDDERS + "dino.Dino": _dino,
    EMBEDDERS + "pointmap.PointPatchEmbed": _point_patch,
    DATA + "preprocessor.PreProcessor": _as_is,
    DATA + "img_and_mask_transforms.crop_around_mask_with_padding": _as_is,
    DATA + "img_and_mask_transforms.resize_all_to_same_size": _ignored,
    DATA + "img_and_mask_transforms.ObjectCentricSSI": _normalizer,
    DATA + "img_processing.pad_to_square_centered": _ignored,
    "torchvision.transforms.Compose": _as_is,
    "torchvision.transforms.Resize": _as_is,
}
MODEL_TYPES = {
    "ss_condition_embedder": EmbedderFuserConfig,
    "ss_generator": StructureFlowConfig,
    "ss_decoder": _StructureDecoder,
    "slat_condition_embedder": EmbedderFuserConfig,
    "slat_generator": SlatConfig,
    "slat_decoder_gs": GaussianDecoderConfig,
    "slat_decoder_gs_4": GaussianDecoderConfig,
    "slat_decoder_mesh": MeshDecoderConfig,
}


def _options(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """What pipeline.yaml says beside its files, as `PipelineConfig` takes it. Defaults are upstream's."""
    if pipeline.get("pose_decoder_name") != "ScaleShiftInvariant":
        raise ValueError(
            f"{PIPELINE}: expected pose_decoder_name 'ScaleShiftInvariant', given {pipeline.get('pose_decoder_name')!r}"
        )
    if pipeline.get("ss_cfg_strength_pm", 0) != 0:
        raise ValueError(f"{PIPELINE}: expected ss_cfg_strength_pm 0, given {pipeline['ss_cfg_strength_pm']!r}")
    if missing := [name for name in ("slat_mean", "slat_std") if not isinstance(pipeline.get(name), list)]:
        raise ValueError(f"{PIPELINE}: expected a list of numbers at {', '.join(missing)}, given none")
    try:
        return {
            "ss_sampling": _sampling(pipeline, "ss", strength=7.0, rescale_t=3.0),
            "slat_sampling": _sampling(pipeline, "slat", strength=5.0, rescale_t=3.0),
            "preprocessing": _preprocessing(pipeline),
            "prune_distance": pipeline.get("downsample_ss_dist", 0),
            "slat_mean": tuple(pipeline["slat_mean"]),
            "slat_std": tuple(pipeline["slat_std"]),
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{PIPELINE}: {error}") from error


def _sampling(pipeline: Mapping[str, Any], stage: str, strength: float, rescale_t: float) -> Sampling:
    return Sampling(
        pipeline.get(f"{stage}_inference_steps", 25),
        pipeline.get(f"{stage}_cfg_strength", strength),
        pipeline.get(f"{stage}_rescale_t", rescale_t),
        tuple(pipeline.get(f"{stage}_cfg_interval", (0, 500))),
    )


def _preprocessing(pipeline: Mapping[str, Any]) -> Preprocessing:
    """The sizes that both preprocessors name; ValueError if they differ, as one set of images is made for both."""
    found: dict[str, set] = {"size": set(), "box_size_factor": set(), "padding_factor": set()}

    def collect(node: Any) -> None:
        if isinstance(node, Mapping):
            for name, value in node.items():
                found.get(name, set()).add(value) if not isinstance(value, (Mapping, list)) else collect(value)
        elif isinstance(node, list):
            for child in node:
                collect(child)

    for stage in ("ss", "slat"):
        node = _built(pipeline.get(f"{stage}_preprocessor") or {})
        if not isinstance(node, Mapping):
            raise ValueError(f"{stage}_preprocessor: expected a PreProcessor, given {node!r}")
        if node and stage == "ss" and node.get("normalize_pointmap", False) is not True:
            raise ValueError(f"ss_preprocessor: expected normalize_pointmap true, given {node.get('normalize_pointmap')!r}")
        collect({name: node.get(name) for name in node if not name.startswith(("pointmap_transform", "rgb_pointmap"))})
    for name, values in found.items():
        if len(values) > 1:
            raise ValueError(f"preprocessors: expected one {name}, given {', '.join(map(str, sorted(values)))}")
    clip = pipeline.get("clip_pointmap_beyond_scale")
    return Preprocessing(**{name: values.pop() for name, values in found.items() if values}, clip_pointmap_beyond_scale=clip)
