"""The file of a published depth model, `model.pt`: what pipeline.yaml says of it, where it is looked for, and what it holds.

It is a pickle of torch, a dict of "model_config", what upstream's constructor takes, and "model", the weights.
"""

import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam3d_tvm.checkpoint_files import MissingFile, find_file, read_pickle, roots, tensors_by_name
from sam3d_tvm.models.moge.config import MogeConfig
from sam3d_tvm.models.upstream import pick
from sparse_ops.deploy.reading import shown
from sparse_ops.deploy.weights import State

FILE = "model.pt"
CONFIG, WEIGHTS = "model_config", "model"
NAME = "pretrained_model_name_or_path"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def _wrapper(values: Mapping[str, Any]) -> str:
    """Upstream's wrapper of a depth model: the name of the model inside."""
    name = pick(values, ("model",), {}, ("device",)).get("model")
    if not isinstance(name, str):
        raise ValueError(f"model: expected a depth model that is loaded by its name, given {shown(name)}")
    return name


def _pretrained(values: Mapping[str, Any]) -> str:
    """What loads a depth model by its name: the name."""
    name = values.get(NAME)
    if not isinstance(name, str) or not name or "\0" in name or len(name) > 1024:
        raise ValueError(f"{NAME}: expected the name of a model or a path, given {shown(name)}")
    return name


TARGETS = {
    "sam3d_objects.pipeline.depth_models.moge.MoGe": _wrapper,
    "moge.model.v1.MoGeModel.from_pretrained": _pretrained,
}


def find(name: str, folder: Path) -> Path:
    """The file of a depth model that pipeline.yaml calls `name`, a path or a name as `Ruicheng/moge-vitl`, for a checkpoint in
    `folder`. MissingFile that says where it was looked for.

    It is looked for in the folder: at the path as it is written, under the path's last part, as upstream's paths begin where
    it is started, and as `model.pt`; then in the cache of the hub. Paths that lead out of the folder are left to who calls.
    """
    plain = posixpath.normpath(name.replace("\\", "/"))
    last = posixpath.basename(plain)
    places = [] if plain.startswith(("/", "..")) or re.match(r"[A-Za-z]:", plain) else [plain]
    places += [last, FILE]
    for place in dict.fromkeys(part for part in places if part not in ("", ".", "..")):
        if (folder / place).is_file():
            return folder / place
    looked = [str(folder / FILE)]
    if HUB_NAME.fullmatch(name):
        cached = hub_cache() / f"models--{name.replace('/', '--')}"
        looked.append(str(cached))
        if os.path.lexists(cached):
            return find_given(cached)
    raise MissingFile(f"depth model {shown(name)}: not found at {' or '.join(looked)}")


def find_given(path: str | os.PathLike) -> Path:
    """The file of a depth model: itself, `model.pt` in a folder, or in the cache of the hub that of the snapshot that is meant.
    MissingFile where there is none."""
    path = Path(path)
    try:
        if path.is_dir():
            *_, folder = roots(path)
            return find_file(folder, FILE, "depth model")
        return find_file(path.parent, path.name, "depth model")
    except MissingFile:
        raise
    except (OSError, ValueError) as error:  # ValueError: several snapshots, or a path with a zero in it
        raise MissingFile(f"depth model: cannot read {str(path)!r}: {error}") from error


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it has downloaded, by the variables that it heeds; nothing is looked at."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def read(file: Path) -> tuple[MogeConfig, State]:
    """The config and the weights of a file, by upstream's names; weights are read when they are asked for.

    Raises ValueError, with the file's name, for one that is damaged, of another kind or of another model; OtherFile as
    `read_pickle`.
    """
    value = read_pickle(file)
    if not isinstance(value, Mapping) or not isinstance(value.get(CONFIG), Mapping) or WEIGHTS not in value:
        given = ", ".join(map(str, list(value)[:8])) if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(f"{file.name}: expected {CONFIG} and {WEIGHTS} of a depth model, given {shown(given, 200)}")
    if not isinstance(value[CONFIG].get("encoder"), str):
        raise ValueError(f"{file.name}: {CONFIG}: expected version 1 of the model, whose encoder has a name, given another")
    try:
        config = MogeConfig.from_upstream({str(name): part for name, part in value[CONFIG].items()})
    except (LookupError, TypeError, ArithmeticError, AttributeError, ValueError) as error:
        raise ValueError(f"{file.name}: {CONFIG}: {error}") from error
    return config, tensors_by_name(value[WEIGHTS], file.name)
