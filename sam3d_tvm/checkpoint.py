"""The checkpoint folder of SAM-3D-Objects as it is published: `pipeline.yaml`, and for each model a .yaml and its weights.

    pipeline.yaml                          the other files, how to sample, how to preprocess
    ss_generator.yaml, .ckpt               structure flow and its condition embedder
    slat_generator.yaml, .ckpt             SLAT flow and its condition embedder
    ss_decoder.yaml, .ckpt                 and slat_decoder_gs, slat_decoder_gs_4, slat_decoder_mesh

YAML is data here: strings at `_target_` are looked up in the table `TARGETS` and never imported. Weights are .safetensors, or
.ckpt, .pt or .pth, which need torch and are read without running what a pickle may hold; what they hold tells which, not their
names. What stands in pipeline.yaml stays within its folder as it is written; where links lead is for the user to say.
"""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sam3d_tvm.checkpoint_files import (
    MissingFile,
    OtherFile,
    check_present,
    check_weights,
    find_file,
    find_pipeline,
    inside,
    read_weights,
    weights_beside,
)
from sam3d_tvm.config import PipelineConfig, Preprocessing, Sampling
from sam3d_tvm.models import MODELS
from sam3d_tvm.models.descriptor import OwnFile
from sam3d_tvm.models.upstream import pick
from sam3d_tvm.reading import read_yaml
from sparse_ops.deploy.reading import brief, shown
from sparse_ops.deploy.weights import LazyArray, State

OFFSETS = "offset_perturbation"  # saved with the Gaussian decoder, but no parameter of it
# The largest numbers that are taken, by name: what is made of them is made before weights are looked at.
LAYERS, LARGEST, LONGEST = 128, 1 << 17, 16
LIMITS = {"num_res_blocks": LAYERS, "num_res_blocks_middle": LAYERS, "num_io_res_blocks": LAYERS, "num_blocks": LAYERS}
LIMITS |= {"depth": LAYERS, "steps": 10_000, "size": 4096, "input_size": 4096, "img_size": 4096, "mlp_ratio": 64}
# What a checkpoint may hold that only training reads.
TRAINING = (".point_remapper.", ".dropped_xyz_token")


class Checkpoint:
    """A checkpoint folder: the config of its pipeline, and the weights of every model, read when they are asked for.

    path: the folder, the root of the downloaded repository or its place in the cache of a hub, or `pipeline.yaml` itself.
    needed: the decoders that must be there; others may be missing, or something else may stand in their place, such as the
    pointer of a download that was not asked for. By default all may be missing, and what is there must be whole.
    depth_model: where the depth model is, which is published apart: its file, or as `moge.checkpoint.find_given`; by default it
    is looked for by the name that `pipeline.yaml` has for it, and may be missing.

    `pipeline_file`, `folder`: where it was found. `missing`: why a decoder is not part of it, by name. `notes`: what should be
    told of what was found, in sentences.

    Raises ValueError for a folder without `pipeline.yaml`, a file that is missing or cannot be read, a `_target_` that is not
    known, and models of other kinds or sizes than this package has. The message names the file and the place in it.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        needed: Collection[str] | None = None,
        depth_model: str | os.PathLike | None = None,
    ):
        self.pipeline_file = find_pipeline(path)
        self.folder, where = self.pipeline_file.parent, self.pipeline_file.name
        self.missing: dict[str, str] = {}
        self.notes: list[str] = []
        self._files: dict[str, Path] = {}
        self._parsed: dict[str, Mapping[str, Any]] = {}
        self._own: dict[str, State] = {}  # weights of models in files of their own
        pipeline = self._yaml(where)
        options = _options(pipeline, where)
        for name, part in options.items():
            _check_sizes(dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part, where, name)
        read = {}
        for name, model in MODELS.items():
            try:
                if not isinstance(model.place, OwnFile):
                    read[name] = self._read(pipeline, name)
                elif (config := self._read_own(pipeline, name, depth_model)) is not None:
                    read[name] = config
            except MissingFile as error:
                whole = needed is None and isinstance(error, OtherFile)
                if whole or not model.optional or name in (needed or ()):
                    raise
                self.missing[name] = str(error)
                if isinstance(model.place, OwnFile):
                    self.notes.append(f"{error}: {model.place.lost}")
                elif f"{model.place.files}_config_path" in pipeline:
                    self.notes.append(f"left out {name}: {error}")
        try:
            models = {name: MODELS[name].complete(found, read) for name, found in read.items()}
            self.config = PipelineConfig(**models, **options)
        except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError) as error:  # that do not fit together
            raise ValueError(f"{where}: {brief(error)}") from error

    def _read(self, pipeline: Mapping[str, Any], name: str) -> Any:
        """The config of model `name`, of whose weights the file is looked at."""
        (stem, path, _), where = MODELS[name].place, self.pipeline_file.name
        files = {}
        for kind in ("config", "ckpt"):
            file = pipeline.get(key := f"{stem}_{kind}_path")
            if file is None and MODELS[name].optional:
                raise MissingFile(f"{where} names no file at {key}")
            if not isinstance(file, str):
                raise ValueError(f"{where}: expected the name of a file at {key}, given {shown(file)}")
            files[kind] = inside(file, where)
        config = files["config"]
        if config not in self._parsed:
            self._parsed[config] = self._yaml(config)
        weights = weights_beside(self.folder, files["ckpt"])
        file = find_file(self.folder, weights)
        if file not in self._files.values():
            check_weights(file)
            if weights != files["ckpt"]:
                self.notes.append(f"took {weights} for {files['ckpt']}, which is not there")
        self._files[name] = file
        return _model(self._parsed[config], path, config, MODELS[name].read_as or MODELS[name].config)

    def _read_own(self, pipeline: Mapping[str, Any], name: str, given: str | os.PathLike | None) -> Any:
        """The config of model `name`, which has a file of its own; None where neither pipeline.yaml names it nor a user."""
        place, where = MODELS[name].place, self.pipeline_file.name
        if given is not None:
            try:
                file = place.find_given(given)
            except MissingFile as error:
                raise ValueError(str(error)) from error
        else:
            node = pipeline.get(place.key)
            if node is None:
                return None
            try:
                called = _built(node)
            except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError) as error:
                raise ValueError(f"{where}: {place.key}: {brief(error)}") from error
            if not isinstance(called, str):
                raise ValueError(f"{where}: expected the name of a model at {place.key}, given {shown(called)}")
            file = place.find(called, self.folder)
        config, self._own[name] = place.read(file)
        check_config(config, file.name)
        self._files[name] = file
        return config

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
        file, prefix = self.file(name), ""
        if (state := self._own.get(name)) is None:
            state, prefix = read_weights(file), MODELS[name].place.prefix
        return {
            key.removeprefix(prefix): value
            for key, value in with_finite(state, file).items()
            if key.startswith(prefix) and not any(part in f".{key}" for part in TRAINING)
        }

    def _yaml(self, name: str) -> Mapping[str, Any]:
        """A .yaml file, of which every `_target_` is known."""
        file = find_file(self.folder, name)
        check_present(file, "names and values")
        value = read_yaml(file, name)
        if not isinstance(value, Mapping):
            given = f"the text {shown(value)}" if isinstance(value, str) else type(value).__name__
            raise ValueError(f"{name}: expected names and values, given {given}")
        _check_targets(value, name)
        return value


def with_finite(state: State, file: Path) -> dict[str, LazyArray]:
    """Weights that raise ValueError when they are asked for and are not finite."""
    return {name: LazyArray(value.shape, value.dtype, _finite(value, name, file)) for name, value in state.items()}


def check_config(config: Any, where: str) -> None:
    """ValueError for the config of a model with numbers or lists beyond all limits."""
    _check_sizes(dataclasses.asdict(config), where)


def _finite(value: LazyArray, name: str, file: Path) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        array = np.asarray(value)
        if not np.isfinite(array).all():
            raise ValueError(f"{file.name}: expected finite weights, given NaN or infinity in {brief(name, 200)}")
        return array

    return make


def _check_targets(node: Any, where: str) -> None:
    """ValueError for a `_target_` anywhere in `node` that is not in `TARGETS`."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if "_target_" in node and not (isinstance(target, str) and target in TARGETS):
            raise ValueError(
                f"{where}: _target_ {shown(target, 200)} is not known; it is never imported, see sam3d_tvm.checkpoint.TARGETS"
            )
        children = node.items()
    else:
        children = enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        key = brief(key, 100)
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
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{where}: {brief(reason)}") from error
    if not isinstance(found, expected):
        given = node.get("_target_") if isinstance(node, Mapping) else node
        raise ValueError(f"{where}: expected a model that makes a {expected.__name__}, given {shown(given)}")
    check_config(found, where)
    return found


def _check_sizes(value: Any, where: str, name: str = "") -> None:
    """ValueError for a number above its limit, and for a list that is longer than any model has."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_sizes(part, where, str(key))
    elif isinstance(value, (list, tuple)):
        if len(value) > LONGEST:
            raise ValueError(f"{where}: {name}: expected at most {LONGEST} of them, given {len(value):,}")
        for part in value:
            _check_sizes(part, where, name)
    elif isinstance(value, (int, float)) and not abs(value) <= (most := LIMITS.get(name, LARGEST)):
        raise ValueError(f"{where}: {name}: expected at most {most:,}, given {value}")


def _built(node: Any) -> Any:
    """What a node of a .yaml file says, inner ones first: mappings with a `_target_` are what `TARGETS` makes of them."""
    if isinstance(node, list):
        return [_built(child) for child in node]
    if not isinstance(node, Mapping):
        return node
    values = {str(key): _built(child) for key, child in node.items() if key not in HYDRA}
    return TARGETS[node["_target_"]](values) if "_target_" in node else values


def _wrapper(values: Mapping[str, Any]) -> Any:
    """A generator or its guidance: the model inside. How it is sampled pipeline.yaml says."""
    for name, value in {"time_scale": 1000.0, "sigma_min": 0.0, "solver_method": "euler", "reversed_timestamp": False}.items():
        if values.get(name, value) != value:
            raise ValueError(f"{name}: expected {value!r}, given {values[name]!r}")
    return values["reverse_fn"] if "reverse_fn" in values else values["backbone"]


def _normalizer(values: Mapping[str, Any]) -> None:
    """How point maps are normalised: as `preprocess` does it, or ValueError."""
    only = {"use_scene_scale": True, "clip_beyond_scale": None, "scale_factor": 1.0}
    pick(values, (), only, ("quantile_drop_threshold", "allow_scale_and_shift_override", "raise_on_no_valid_points"))


def _ignored(values: Mapping[str, Any]) -> None:
    """What has no part in what is computed here: training, and transforms without sizes."""


def _as_is(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return values


HYDRA = ("_target_", "_partial_", "_recursive_", "_convert_")  # what its configs hold beside arguments
GENERATORS = "sam3d_objects.model.backbone.generator."
DATA = "sam3d_objects.data.dataset.tdfy."
# What makes something of the values beside a `_target_`: those of the models, and what is around them.
TARGETS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    **{target: make for model in MODELS.values() for target, make in model.targets.items()},
    "sam3d_objects.pipeline.inference_pipeline_pointmap.InferencePipelinePointMap": _as_is,
    "sam3d_objects.pipeline.inference_pipeline.InferencePipeline": _as_is,
    "sam3d_objects.config.utils.make_dict": _as_is,
    GENERATORS + "shortcut.model.ShortCut": _wrapper,
    GENERATORS + "flow_matching.model.FlowMatching": _wrapper,
    GENERATORS + "flow_matching.model.lognorm_sampler": _ignored,
    GENERATORS + "classifier_free_guidance.ClassifierFreeGuidance": _wrapper,
    GENERATORS + "classifier_free_guidance.ClassifierFreeGuidanceWithExternalUnconditionalProbability": _wrapper,
    GENERATORS + "classifier_free_guidance.PointmapCFG": _wrapper,
    DATA + "preprocessor.PreProcessor": _as_is,
    DATA + "img_and_mask_transforms.crop_around_mask_with_padding": _as_is,
    DATA + "img_and_mask_transforms.resize_all_to_same_size": _ignored,
    DATA + "img_and_mask_transforms.ObjectCentricSSI": _normalizer,
    DATA + "img_processing.pad_to_square_centered": _ignored,
    "torchvision.transforms.Compose": _as_is,
    "torchvision.transforms.Resize": _as_is,
}


def _options(pipeline: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What pipeline.yaml says beside its files, as `PipelineConfig` takes it. Defaults are upstream's."""
    if pipeline.get("pose_decoder_name") != "ScaleShiftInvariant":
        raise ValueError(
            f"{where}: expected pose_decoder_name 'ScaleShiftInvariant', given {shown(pipeline.get('pose_decoder_name'))}"
        )
    if pipeline.get("ss_cfg_strength_pm", 0) != 0:
        raise ValueError(f"{where}: expected ss_cfg_strength_pm 0, given {shown(pipeline['ss_cfg_strength_pm'])}")
    if missing := [name for name in ("slat_mean", "slat_std") if not isinstance(pipeline.get(name), list)]:
        raise ValueError(f"{where}: expected a list of numbers at {', '.join(missing)}, given none")
    try:
        return {
            "ss_sampling": _sampling(pipeline, "ss", strength=7.0, rescale_t=3.0),
            "slat_sampling": _sampling(pipeline, "slat", strength=5.0, rescale_t=3.0),
            "preprocessing": _preprocessing(pipeline),
            "prune_distance": pipeline.get("downsample_ss_dist", 0),
            "slat_mean": tuple(pipeline["slat_mean"]),
            "slat_std": tuple(pipeline["slat_std"]),
        }
    except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"{where}: {brief(error)}") from error


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
    sizes = {name: values.pop() for name, values in found.items() if values}
    return Preprocessing(
        **sizes,
        clip_pointmap_beyond_scale=pipeline.get("clip_pointmap_beyond_scale"),
        structure_sees_crop=pipeline.get("structure_sees_crop", False),  # no option of upstream's
    )
