"""The artifact folder of a pipeline: a compiled component for each model, made once and used again.

pipeline.json              the config of the pipeline, and what its models are to be made from
<model>/                   a component, see `sparse_ops.deploy.component`
<model>/made_from.json     what it was made from: changes when its code or its weights do
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tvm

from sam3d_tvm.checkpoint import Checkpoint
from sam3d_tvm.checks import check_choice, check_size
from sam3d_tvm.config import PipelineConfig, preset
from sam3d_tvm.fingerprint import fingerprint
from sam3d_tvm.models import FOLDERS, MODELS
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.files import write_bytes
from sparse_ops.deploy.manifest import system, versions
from sparse_ops.deploy.weights import State
from sparse_ops.eager.cache import cache_folder, source_digest
from sparse_ops.transform.precision import PRECISIONS
from tir_kernels.dispatch import host_target

PIPELINE, MADE_FROM = "pipeline.json", "made_from.json"
FORMAT = 1
GAUSSIAN_DECODERS = tuple(name for name, model in MODELS.items() if model.offset_perturbation is not None)
SAMPLE = 1 << 20  # bytes of a file of weights that are looked at, in three places

OnCompile = Callable[[str, int, int], None]


class Source(Protocol):
    """Where the weights of a pipeline come from."""

    config: PipelineConfig

    def state(self, name: str) -> State: ...

    def offset_perturbation(self, name: str) -> np.ndarray: ...

    def identity(self, name: str) -> str:
        """What changes when the weights of a model do."""


class CheckpointSource(Checkpoint):
    """A checkpoint folder."""

    def identity(self, name: str) -> str:
        """Of the file: size, time of its last change, and a hash over three parts of it, as all of it is gigabytes."""
        file = self.file(name)
        status = file.stat()
        digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
        with open(file, "rb") as opened:
            for place in (0, status.st_size // 2, max(0, status.st_size - SAMPLE)):
                opened.seek(place)
                digest.update(opened.read(SAMPLE))
        return digest.hexdigest()


class SeededSource:
    """Random weights of a preset. ValueError for another preset, or a seed below 0."""

    def __init__(self, name: str, seed: int = 0):
        check_size("seed", seed, 0)
        self.config, self._name, self._seed = preset(name), name, seed

    def state(self, name: str) -> State:
        return MODELS[name].random_weights(getattr(self.config, name), self._seed)

    def offset_perturbation(self, name: str) -> np.ndarray:
        return MODELS[name].offset_perturbation(getattr(self.config, name))

    def identity(self, name: str) -> str:
        return f"seed {self._seed} of preset {self._name}, {_source_of(name)}"


class Artifacts:
    """An artifact folder that is complete, for this machine.

    `offset_perturbation`: float32 [num_gaussians, 3] by the name of each Gaussian decoder. `random_weights`: whether these
    are a preset's. Raises ValueError for a folder that is none, and for one whose config cannot be read.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        value = _read(self.folder)
        try:
            self.config = PipelineConfig.from_json(value["config"])
            self.precision = str(value["precision"])
            self.random_weights = value.get("random_weights") is True
            self.offset_perturbation = {k: np.asarray(v, np.float32) for k, v in value["offset_perturbation"].items()}
            keys = dict(value["models"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"artifacts {str(self.folder)!r}: {PIPELINE}: {error}") from error
        if missing := [name for name in self.config.models if keys.get(name) != _made_from(self.folder / name)]:
            raise ValueError(f"artifacts {str(self.folder)!r}: {', '.join(missing)} not compiled yet: compile again")

    def load(self, name: str) -> Component:
        """The component of model `name`, its weights mapped into memory. ValueError as `Component.load`."""
        return Component.load(self.folder / name)

    def weight_bytes(self, name: str) -> int:
        """Memory of the packed weights of model `name`."""
        return sum(file.stat().st_size for file in (self.folder / name).glob("*.safetensors"))


def compile_artifacts(
    source: Source,
    folder: str | os.PathLike,
    precision: str = "float32",
    target: tvm.target.Target | None = None,
    on_model: OnCompile = lambda name, done, total: None,
) -> Artifacts:
    """The artifacts of `source` in `folder`. What is there already, of the same weights and code, is kept; where only weights
    differ they are packed anew; a compilation that was interrupted is taken up again.

    `precision`: one of `PRECISIONS`. `on_model(name, done, total)` is told which model is being compiled, of how many that
    have to be, and in the end ("", total, total). Raises ValueError for a folder that holds something else, and for weights
    that do not fit, with the name of the model.
    """
    folder, config = begin(source, folder, precision, target), source.config
    todo = [name for name in config.models if not is_made(source, folder, name, precision, target)]
    for done, name in enumerate(todo):
        on_model(name, done, len(todo))
        compile_model(source, folder, name, precision, target)
    on_model("", len(todo), len(todo))
    return Artifacts(folder)


def begin(source: Source, folder: str | os.PathLike, precision: str = "float32", target=None) -> Path:
    """Writes what the models of `source` have between them, and which these are: the folder is complete when all of them are
    made. ValueError for a folder that holds something else."""
    check_choice("precision", precision, PRECISIONS)
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / PIPELINE).is_file())):
        raise ValueError(f"artifacts: expected a new folder or one with {PIPELINE}, given {str(folder)!r}")
    offsets = {name: source.offset_perturbation(name).tolist() for name in GAUSSIAN_DECODERS if name in source.config.models}
    value = {
        "format": FORMAT,
        "precision": precision,
        "random_weights": isinstance(source, SeededSource),
        "config": source.config.to_json(),
        "offset_perturbation": offsets,
        "models": {name: _key(source, name, precision, target) for name in source.config.models},
    }
    data, file = (json.dumps(value, indent=1) + "\n").encode(), folder / PIPELINE
    if not file.is_file() or file.read_bytes() != data:
        write_bytes(file, data)
    return folder


def is_made(source: Source, folder: Path, name: str, precision: str = "float32", target=None) -> bool:
    """Whether the folder has model `name` of these weights and this code, whole."""
    return _made_from(folder / name) == _key(source, name, precision, target) and _loads(folder / name)


def compile_model(source: Source, folder: Path, name: str, precision: str = "float32", target=None) -> None:
    """Compiles model `name` into the folder, or packs its weights anew if its code is there. ValueError as
    `compile_artifacts`."""
    config, key = getattr(source.config, name), _key(source, name, precision, target)
    try:
        state = source.state(name)
        if _made_from(folder / name).get("code") == key["code"] and _loads(folder / name):
            component = Component.load(folder / name).with_parameters(state)
        else:
            model = MODELS[name]
            options = model.options(source.config)
            component = model.compile(config, state, name=name, precision=precision, target=target, **options)
    except ValueError as error:
        where = f"{name} in {source.file(name).name}" if isinstance(source, Checkpoint) else name
        raise ValueError(f"{where}: {error}") from error
    component.save(folder / name)
    write_bytes(folder / name / MADE_FROM, (json.dumps(key, indent=1) + "\n").encode())


def default_folder(label: str) -> Path:
    """Where artifacts are kept unless a folder is named, see `cache_folder`. ValueError where that is switched off."""
    base = cache_folder("sam3d_tvm")
    if base is None:
        raise ValueError("artifacts: expected a folder, as SPARSE_OPS_CACHE=off keeps none, given none")
    return base / label


def checkpoint_label(folder: Path, precision: str) -> str:
    """A name for the artifacts of a checkpoint folder."""
    return f"{folder.resolve().name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}-{precision}"


def _loads(folder: Path) -> bool:
    try:
        Component.load(folder)
    except ValueError:
        return False
    return True


def _read(folder: Path) -> Mapping[str, Any]:
    """What the folder's `pipeline.json` says. ValueError without one, and for one of another format."""
    try:
        value = json.loads((folder / PIPELINE).read_text())
    except (OSError, ValueError) as error:
        reason = f"artifacts: expected a folder with {PIPELINE}, given {str(folder)!r}"
        raise ValueError(reason if isinstance(error, FileNotFoundError) else f"{reason}: {error}") from error
    if not isinstance(value, Mapping) or value.get("format") != FORMAT:
        raise ValueError(f"artifacts {str(folder)!r}: expected a {PIPELINE} of format {FORMAT}")
    return value


def _made_from(folder: Path) -> Mapping[str, str]:
    """The key of what is in the folder of a model; empty if that is not known."""
    try:
        value = json.loads((folder / MADE_FROM).read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, Mapping) else {}


def _key(source: Source, name: str, precision: str, target: tvm.target.Target | None) -> dict[str, str]:
    """What changes with the code of a model, and with its weights."""
    code = _code_key(source.config, name, precision, target or host_target())
    return {"code": code, "weights": source.identity(name)}


def _code_key(config: PipelineConfig, name: str, precision: str, target: tvm.target.Target) -> str:
    """Changes with everything that decides what is compiled for a model."""
    identity = {
        "config": config.to_json()[name],
        "options": MODELS[name].options(config),
        "precision": precision,
        "target": str(target),
        "versions": versions(),
        "system": system(),
        "source": [source_digest(), _source_of(name)],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _source_of(name: str) -> str:
    """Changes with every file of this package that model `name` is made of."""
    return fingerprint(f"sam3d_tvm.models.{FOLDERS[name]}")
