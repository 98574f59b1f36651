"""The artifact folder of a pipeline: a compiled component for each model, made once and used again.

pipeline.json              the config of the pipeline, and what its models are to be made from
<model>/                   a component, see `sparse_ops.deploy.component`
<model>/made_from.json     what it was made from, which changes when its code or its weights do; how its integer layers are
                           calibrated; names and sizes of its files
.lock                      is locked by the process that compiles into the folder; the kernel unlocks it when that dies

A folder of a model appears whole, with `made_from.json` in it. Who only reads needs no lock: a folder that is complete is not
written to but by `calibrate`, which puts whole ones in place of its models, and one that is not complete is waited for as long
as a process is at it.
"""

import hashlib
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tvm

from sam3d_tvm.checkpoint import Checkpoint, check_config, with_finite
from sam3d_tvm.checkpoint_files import PIPELINE as CHECKPOINT
from sam3d_tvm.checks import check_size
from sam3d_tvm.compile_processes import compile_side_by_side
from sam3d_tvm.config import PipelineConfig, preset
from sam3d_tvm.fingerprint import fingerprint
from sam3d_tvm.lock import locked, wait_while_held
from sam3d_tvm.models import FOLDERS, MODELS
from sam3d_tvm.models.moge.config import MogeConfig
from sam3d_tvm.notices import say
from sparse_ops.deploy.calibrate import is_calibrated, is_integer
from sparse_ops.deploy.component import LIBRARY, MANIFEST, MODULE, PARAMETERS, Component, leftovers
from sparse_ops.deploy.files import write_bytes
from sparse_ops.deploy.manifest import Manifest, PackedSpec, system, versions
from sparse_ops.deploy.reading import JSON_BYTES, brief, read_bytes, read_json
from sparse_ops.deploy.weights import State
from sparse_ops.eager.cache import cache_folder, source_digest
from sparse_ops.transform.precision import check_precision
from tir_kernels.dispatch import current_target

PIPELINE, MADE_FROM, LOCK = "pipeline.json", "made_from.json", ".lock"
FORMAT = 1
GAUSSIAN_DECODERS = tuple(name for name, model in MODELS.items() if model.offset_perturbation is not None)
SAMPLE = 1 << 20  # bytes of a file of weights that are looked at, in three places

KEY = ("code", "weights")  # what a model is known by, see `_key`
CALIBRATION = "calibration"  # of its layers: a digest of the channels that are apart, "" of none; absent without integer layers

OnCompile = Callable[[str, int, int], None]


class Source(Protocol):
    """Where the weights of a pipeline come from."""

    config: PipelineConfig

    def state(self, name: str) -> State: ...

    def offset_perturbation(self, name: str) -> np.ndarray: ...

    def identity(self, name: str) -> str:
        """What changes when the weights of a model do."""

    def label(self, precision: str, target: tvm.target.Target | None = None) -> str:
        """A name for its artifacts."""


class CheckpointSource(Checkpoint):
    """A checkpoint folder, with the decoders that it has, see `Checkpoint`."""

    def identity(self, name: str) -> str:
        return _identity(self.file(name))

    def label(self, precision: str, target: tvm.target.Target | None = None) -> str:
        """Of the folder, by whichever of its paths it was given."""
        folder, file = self.folder.resolve(), self.pipeline_file.name
        place = os.fsencode(folder if file == CHECKPOINT else folder / file)
        return f"{folder.name}-{hashlib.sha256(place).hexdigest()[:12]}-{precision}{target_suffix(target)}"


def _identity(file: Path) -> str:
    """Of a file: size, time of its last change, and a hash over three parts of it, as all of it is gigabytes."""
    status = file.stat()
    digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
    with open(file, "rb") as opened:
        for place in (0, status.st_size // 2, max(0, status.st_size - SAMPLE)):
            opened.seek(place)
            digest.update(opened.read(SAMPLE))
    return digest.hexdigest()


def target_suffix(target: tvm.target.Target | None) -> str:
    """What tells artifacts for a device from those for CPUs."""
    return "" if target is None or target.kind.name == "llvm" else f"-{target.kind.name}-{target.attrs['arch']}"


class SeededSource:
    """Random weights of a preset, with a depth model if that is asked for. ValueError for another preset, or a seed below 0."""

    def __init__(self, name: str, seed: int = 0, depth_model: bool = False):
        check_size("seed", seed, 0)
        self.config, self._name, self._seed = preset(name, depth_model), name, seed
        self._depth_model = depth_model

    def to_json(self) -> dict[str, Any]:
        """What `presets.source_from_json` makes the same source of."""
        return {"name": self._name, "seed": self._seed, "depth_model": self._depth_model}

    def state(self, name: str) -> State:
        return MODELS[name].random_weights(getattr(self.config, name), self._seed)

    def offset_perturbation(self, name: str) -> np.ndarray:
        return MODELS[name].offset_perturbation(getattr(self.config, name))

    def identity(self, name: str) -> str:
        return f"seed {self._seed} of preset {self._name}, {_source_of(name)}"

    def label(self, precision: str, target: tvm.target.Target | None = None) -> str:
        return f"preset-{self._name}-{self._seed}-{precision}{target_suffix(target)}"


@dataclass(frozen=True)
class DepthModelConfig:
    """What `DepthModelSource` has in place of the config of a pipeline."""

    depth_model: MogeConfig

    @property
    def models(self) -> dict[str, Any]:
        return vars(self)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class DepthModelSource:
    """The depth model alone, of its published file, wherever `OwnFile.find_given` finds that. ValueError for a file that is
    missing or none of such."""

    def __init__(self, path: str | os.PathLike):
        (name,) = (field.name for field in fields(DepthModelConfig))
        place = MODELS[name].place
        self._file = place.find_given(path)
        config, self._state = place.read(self._file)
        check_config(config, self._file.name)
        self.config = DepthModelConfig(config)

    def file(self, name: str) -> Path:
        return self._file

    def state(self, name: str) -> State:
        return with_finite(self._state, self._file)

    def offset_perturbation(self, name: str) -> np.ndarray:
        raise LookupError(name)  # it has no Gaussians

    def identity(self, name: str) -> str:
        return _identity(self._file)

    def label(self, precision: str, target: tvm.target.Target | None = None) -> str:
        place = hashlib.sha256(os.fsencode(self._file.resolve())).hexdigest()[:12]
        return f"depth-model-{place}-{precision}{target_suffix(target)}"


class Artifacts:
    """An artifact folder that is complete, for this machine.

    `precision`, `target`: what they were compiled for, the target as a dict. `offset_perturbation`: float32 [num_gaussians, 3]
    by the name of each Gaussian decoder. `random_weights`: whether these are a preset's. `keys`: what changes with all that a
    model computes, by name. While another process compiles into the folder and has not done so yet, it is waited for, which is
    said after a second. Raises ValueError for a folder that is none, one whose config cannot be read, and one in which files
    are missing or of another size, with all of them.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        problems = self._open()
        while problems:
            waited = wait_while_held(self.folder / LOCK, lambda: say_waiting(self.folder))
            problems = self._open()  # the other one may just have ended
            if not waited:
                break
        if problems:
            raise ValueError(f"artifacts {str(self.folder)!r}: {'; '.join(problems)}: compile again")

    def _open(self) -> list[str]:
        """What is wrong with the files of its models."""
        value = _read(self.folder)
        try:
            self.config = PipelineConfig.from_json(value["config"])
            self.precision = str(value["precision"])
            self.target = {**value.get("target", {"kind": "llvm"})}  # those made before there were others are for CPUs
            self.random_weights = value.get("random_weights") is True
            self.offset_perturbation = {
                name: _offsets(value["offset_perturbation"][name], getattr(self.config, name), name)
                for name in GAUSSIAN_DECODERS
                if name in self.config.models
            }
            wanted = {name: {part: str(value["models"][name][part]) for part in KEY} for name in self.config.models}
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
            raise ValueError(f"artifacts {str(self.folder)!r}: {PIPELINE}: {brief(reason)}") from error
        made = {name: made_from(self.folder / name) for name in self.config.models}
        self.keys = {name: wanted[name] | _calibration_of(made[name]) for name in self.config.models}
        found = {name: self._problems(name, made[name], wanted[name]) for name in self.config.models}
        absent = [name for name, problems in found.items() if problems is None]
        first = [f"{', '.join(absent)} not compiled yet"] if absent else []
        return first + [problem for problems in found.values() for problem in problems or ()]

    def _problems(self, name: str, made: Mapping[str, Any] | None, wanted: Mapping[str, str]) -> list[str] | None:
        """What is wrong with the files of a model; None if it is not there, or made from something else than `wanted`."""
        folder = self.folder / name
        if made is None:
            names = {path.name for path in folder.iterdir()} if folder.is_dir() else ()
            if not names:
                return None
            gone = [file for file in (MANIFEST, PARAMETERS, MADE_FROM) if file not in names]
            gone += [LIBRARY] if names.isdisjoint((LIBRARY, MODULE)) else []
            return [f"{name}/{file} is missing" for file in gone] or [f"{name}/{MADE_FROM} is damaged"]
        if key_of(made) != wanted:
            return None
        return [f"{name}/{problem}" for problem in _damage(folder, made)]

    def load(self, name: str) -> Component:
        """The component of model `name`, its weights mapped into memory. ValueError as `Component.load`, and if it is not what
        it was when the folder was opened."""
        component = Component.load(self.folder / name)
        made = made_from(self.folder / name)
        if made is None or key_of(made) | _calibration_of(made) != self.keys[name]:
            raise ValueError(f"artifacts {str(self.folder)!r}: {name} is not what it was when they were opened: begin again")
        return component

    def layers(self, name: str) -> dict[str, PackedSpec]:
        """The weights of the layers of model `name` by the names of their parameters, with numbers for layers that share one.
        ValueError as `Component.load`."""
        manifest = self._manifest(name)
        known, found = {spec.name for spec in manifest.parameters}, defaultdict(list)
        for spec in manifest.packed:
            if spec.runs_in:
                found[", ".join(word for word in re.findall(r"[\w.]+", spec.name) if word in known)].append(spec)
        return {
            f"{weight} ({part} of {len(specs)})" if len(specs) > 1 else weight: spec
            for weight, specs in found.items()
            for part, spec in enumerate(specs, 1)
        }

    def check_made_for(self, precision: str | None, target: tvm.target.Target | None) -> None:
        """ValueError if they are of another precision, or for another kind of target, than is asked for."""
        if precision not in (None, self.precision):
            raise ValueError(f"precision: expected that of the artifacts, {self.precision}, given {precision!r}")
        if target is not None and target.kind.name != self.target["kind"]:
            raise ValueError(f"target: expected that of the artifacts, {json.dumps(self.target)}, given {target.kind.name!r}")

    def check_runs_here(self) -> None:
        """ValueError where this machine lacks what the models were compiled for: the version of TVM, instructions, a device."""
        name = next(iter(self.config.models))  # one for all: they have one target
        try:
            self._manifest(name).check_runs_here()
        except ValueError as error:
            raise ValueError(f"artifacts {str(self.folder)!r}: {error}") from error

    def _manifest(self, name: str) -> Manifest:
        try:
            return Manifest.from_json(read_bytes(self.folder / name / MANIFEST, JSON_BYTES))[0]
        except (OSError, ValueError) as error:
            raise ValueError(f"artifacts {str(self.folder)!r}: {name}: {error}") from error

    @property
    def integers(self) -> list[str]:
        """The models with integer layers."""
        return [name for name, key in self.keys.items() if CALIBRATION in key]

    @property
    def uncalibrated(self) -> list[str]:
        """The models with integer layers of which no channels are kept apart."""
        return [name for name, key in self.keys.items() if key.get(CALIBRATION) == ""]

    def weight_bytes(self, name: str) -> int:
        """Memory of the packed weights of model `name`."""
        return sum(file.stat().st_size for file in (self.folder / name).glob("*.safetensors"))


def compile_artifacts(
    source: Source,
    folder: str | os.PathLike,
    precision: str = "float32",
    target: tvm.target.Target | None = None,
    on_model: OnCompile = lambda name, done, total: None,
    processes: int = 1,
) -> Artifacts:
    """The artifacts of `source` in `folder`. What is there already, of the same weights and code, is kept; where only weights
    differ they are packed anew; a compilation that was interrupted is taken up again.

    Processes that want to compile into one folder take turns, and what one has made the next finds; a process that died holds
    up nobody. Nothing is written to a folder that is complete.

    `precision`: one of `sparse_ops.transform.precision.PRECISIONS` that the target has. `on_model(name, done, total)` is told
    which model is being compiled, of how many that have to be, and in the end ("", total, total). `processes`: how many models
    are compiled side by side, each with all of its weights in memory; above 1, which is for presets, each is told of when it is
    done.

    Raises ValueError for a folder that holds something else, and for weights that do not fit, with the name of the model;
    OSError that names the folder if it cannot be written to.
    """
    folder, data = _described(source, folder, precision, target)

    def todo() -> list[str]:
        return [name for name in source.config.models if not is_made(source, folder, name, precision, target)]

    if not _holds(folder / PIPELINE, data) or todo():
        with locked(folder / LOCK, lambda: say_waiting(folder)) as held:
            if held:
                _tidy(folder, source.config.models)
            else:
                say(f"no locks on the file system of {str(folder)!r}: let one process at a time compile into it")
            _describe(folder, data)
            names = todo()
            if processes > 1 and len(names) > 1:
                on_model(names[0], 0, len(names))
                done = count(1)
                options = precision, target, processes, lambda name: on_model(name, next(done), len(names))
                compile_side_by_side(source, folder, names, *options)
            else:
                for done, name in enumerate(names):
                    on_model(name, done, len(names))
                    compile_model(source, folder, name, precision, target)
    else:
        names = []
    on_model("", len(names), len(names))
    return Artifacts(folder)


def compile_one(
    source: Source,
    folder: Path,
    name: str,
    precision: str = "float32",
    target: tvm.target.Target | None = None,
    on_model: OnCompile = lambda name, done, total: None,
) -> Component:
    """Model `name` of `source` alone, in `folder`, where those of its pipeline are or may come beside it. Kept, taken in turns
    and told as by `compile_artifacts`, which see.

    ValueError as there; for a source that is no pipeline's also for a folder whose pipeline has another model of that name, as
    that would not open any more.
    """
    check_precision(precision, target)
    done = is_made(source, folder, name, precision, target)
    if not done:
        _check_ours(folder)
        if not isinstance(source.config, PipelineConfig) and (folder / PIPELINE).is_file():
            _check_same(folder, name, _key(source, name, precision, target))
        with locked(folder / LOCK, lambda: say_waiting(folder)) as held:
            if held:
                _tidy(folder, [name])
            if isinstance(source.config, PipelineConfig):
                begin(source, folder, precision, target)
            if not is_made(source, folder, name, precision, target):
                on_model(name, 0, 1)
                compile_model(source, folder, name, precision, target)
    on_model("", 1 - done, 1 - done)
    return Component.load(folder / name)


def begin(source: Source, folder: str | os.PathLike, precision: str = "float32", target=None) -> Path:
    """Writes what the models of `source` have between them, and which these are: the folder is complete when all of them are
    made. ValueError for a folder that holds something else."""
    folder, data = _described(source, folder, precision, target)
    _describe(folder, data)
    return folder


def _described(source: Source, folder: str | os.PathLike, precision: str, target) -> tuple[Path, bytes]:
    """The folder, and what its `pipeline.json` should hold. ValueError for a folder that holds something else."""
    check_precision(precision, target)
    folder = Path(folder)
    _check_ours(folder)
    offsets = {name: source.offset_perturbation(name).tolist() for name in GAUSSIAN_DECODERS if name in source.config.models}
    value = {
        "format": FORMAT,
        "precision": precision,
        "target": json.loads(str(current_target(target))),
        "random_weights": isinstance(source, SeededSource),
        "config": source.config.to_json(),
        "offset_perturbation": offsets,
        "models": {name: _key(source, name, precision, target) for name in source.config.models},
    }
    return folder, (json.dumps(value, indent=1) + "\n").encode()


def _check_ours(folder: Path) -> None:
    """ValueError for a folder that holds something else than artifacts: those of a pipeline, or models alone."""
    if folder.exists() and not (
        folder.is_dir() and ((folder / PIPELINE).is_file() or {*os.listdir(folder)} <= {LOCK, *MODELS} | _left(folder))
    ):
        raise ValueError(f"artifacts: expected a new folder or one with {PIPELINE}, given {str(folder)!r}")


def _left(folder: Path) -> set[str]:
    """Names of what processes left behind, or are writing."""
    return {path.name for name in MODELS for path in leftovers(folder / name)}


def _check_same(folder: Path, name: str, key: Mapping[str, str]) -> None:
    """ValueError if the pipeline in a folder has another model `name` than that of `key`."""
    models = _read(folder).get("models")
    if isinstance(models, Mapping) and models.get(name, key) != key:
        raise ValueError(f"artifacts: expected a folder of no pipeline with another {name}, given {str(folder)!r}")


def _describe(folder: Path, data: bytes) -> None:
    if not _holds(folder / PIPELINE, data):
        write_bytes(folder / PIPELINE, data)


def _holds(file: Path, data: bytes) -> bool:
    return file.is_file() and file.read_bytes() == data


def _tidy(folder: Path, names: Iterable[str]) -> None:
    """Removes what processes left behind that died while they wrote; called by who holds the lock. A model that was whole, and
    about to take its place, takes it."""
    for name in names:
        for left in sorted(leftovers(folder / name), key=lambda path: path.suffix, reverse=True):  # a new one before an old one
            if not (folder / name).exists() and made_from(left) is not None and not _damage(left, made_from(left)):
                os.replace(left, folder / name)
            else:
                shutil.rmtree(left, ignore_errors=True)
    for left in folder.glob(f".{PIPELINE}.*.tmp"):
        left.unlink(missing_ok=True)


def is_made(source: Source, folder: Path, name: str, precision: str = "float32", target=None) -> bool:
    """Whether the folder has model `name` of these weights and this code, whole."""
    made = made_from(folder / name)
    return made is not None and key_of(made) == _key(source, name, precision, target) and _loads(folder / name, made)


def compile_model(source: Source, folder: Path, name: str, precision: str = "float32", target=None) -> None:
    """Compiles model `name` into the folder, or packs its weights anew if its code is there. ValueError as
    `compile_artifacts`."""
    config, key, made = getattr(source.config, name), _key(source, name, precision, target), made_from(folder / name)
    model = MODELS[name]
    try:
        state = source.state(name)
        if made is not None and made["code"] == key["code"] and _loads(folder / name, made):
            component = Component.load(folder / name).with_parameters(state)
        else:
            options = {"precision": model.precision(precision, target), "target": target, **model.options(source.config)}
            component = model.compile(config, state, name=name, **options)
    except ValueError as error:
        where = name if isinstance(source, SeededSource) else f"{name} in {source.file(name).name}"
        raise ValueError(f"{where}: {error}") from error
    if made is not None and made.get(CALIBRATION):
        say(f"{name} was compiled or packed anew, without the channels that calibrate had kept apart: calibrate it again")
    save_model(component, folder, name, key)


def save_model(component: Component, folder: Path, name: str, key: Mapping[str, str]) -> None:
    """Puts the component of model `name` into the folder, whole; `key`: what it was made from."""
    calibration = {}
    if is_integer(component):
        apart = [list(spec.apart) for spec in component.manifest.packed]
        digest = hashlib.sha256(json.dumps(apart).encode()).hexdigest()
        calibration = {CALIBRATION: digest if is_calibrated(component) else ""}

    def finish(temporary: Path) -> None:
        sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        write_bytes(temporary / MADE_FROM, (json.dumps({**key, **calibration, "files": sizes}, indent=1) + "\n").encode())

    component.save(folder / name, finish=finish)


def default_folder(label: str) -> Path:
    """Where artifacts are kept unless a folder is named, see `cache_folder`. ValueError where that is switched off."""
    base = cache_folder("sam3d_tvm")
    if base is None:
        raise ValueError("artifacts: expected a folder, as SPARSE_OPS_CACHE=off keeps none, given none")
    return base / label


def say_waiting(folder: Path) -> None:
    say(f"waiting for another process that compiles into {str(folder)!r}")


def _loads(folder: Path, made: Mapping[str, Any]) -> bool:
    if _damage(folder, made):
        return False
    try:
        Component.load(folder)
    except ValueError:
        return False
    return True


def _damage(folder: Path, made: Mapping[str, Any]) -> list[str]:
    """The files that are missing or not of the size that `made_from.json` says. What they hold is looked at on loading."""
    found = []
    for file, size in made["files"].items():
        try:
            given = (folder / file).stat().st_size
        except OSError:
            found.append(f"{file} is missing")
            continue
        if given != size:
            found.append(f"{file} has {given:,} bytes in place of {size:,}")
    return found


def _read(folder: Path) -> Mapping[str, Any]:
    """What the folder's `pipeline.json` says. ValueError without one, and for one of another format."""
    reason = f"artifacts: expected a folder with {PIPELINE}, given {str(folder)!r}"
    if not (folder / PIPELINE).exists():
        raise ValueError(reason)
    try:
        value = read_json(folder / PIPELINE)
    except ValueError as error:
        raise ValueError(f"{reason}: {error}") from error
    if not isinstance(value, Mapping) or value.get("format") != FORMAT:
        raise ValueError(f"artifacts {str(folder)!r}: expected a {PIPELINE} of format {FORMAT}")
    return value


def made_from(folder: Path) -> dict[str, Any] | None:
    """What `made_from.json` of the folder of a model says; None if that is not known."""
    try:
        value = read_json(folder / MADE_FROM)
        files = {str(file): int(size) for file, size in value["files"].items()}
        if any(Path(file).name != file for file in files):
            return None
        return {part: str(value[part]) for part in KEY} | _calibration_of(value) | {"files": files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _offsets(value: Any, config: Any, name: str) -> np.ndarray:
    """float32 [num_gaussians, 3]. ValueError for anything else."""
    offsets, expected = np.asarray(value, np.float32), (config.representation_config["num_gaussians"], 3)
    if offsets.shape != expected or not np.isfinite(offsets).all():
        raise ValueError(
            f"offset_perturbation of {name}: expected {list(expected)} finite numbers, given {list(offsets.shape)}"
        )
    return offsets


def key_of(made: Mapping[str, Any] | None) -> dict[str, str] | None:
    return None if made is None else {part: made[part] for part in KEY}


def _calibration_of(made: Mapping[str, Any] | None) -> dict[str, str]:
    return {CALIBRATION: str(made[CALIBRATION])} if made is not None and CALIBRATION in made else {}


def _key(source: Source, name: str, precision: str, target: tvm.target.Target | None) -> dict[str, str]:
    """What changes with the code of a model, and with its weights."""
    code = _code_key(source.config, name, precision, current_target(target))
    return {"code": code, "weights": source.identity(name)}


def _code_key(config: PipelineConfig, name: str, precision: str, target: tvm.target.Target) -> str:
    """Changes with everything that decides what is compiled for a model."""
    identity = {
        "config": config.to_json()[name],
        "options": MODELS[name].options(config),
        "precision": MODELS[name].precision(precision, target),
        "target": str(target),
        "versions": versions(),
        "system": system(),
        "source": [source_digest(), _source_of(name)],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _source_of(name: str) -> str:
    """Changes with every file of this package that model `name` is made of."""
    return fingerprint(f"sam3d_tvm.models.{FOLDERS[name]}")
