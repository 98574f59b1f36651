"""The files of a checkpoint folder: where it is in what was downloaded, what may stand in place of a file, and its weights."""

import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sam3d_tvm.reading import load_torch, torch_kind
from sparse_ops.deploy.reading import parse_json, read_bytes, read_head, shown
from sparse_ops.deploy.weights import DTYPES, LazyArray, load_state

PIPELINE = "pipeline.yaml"
PLACES = ("", "checkpoints", "checkpoints/hf", "hf")  # of it in a download, the first that has it
HEAD = 1024  # bytes that tell what a file is
AGAIN = "download it again, for which you may have to log in and accept the licence first"
UNFINISHED = (".incomplete", ".part", ".crdownload", ".download", ".tmp")
ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
    b"\x04\x22\x4d\x18": "lz4",
}


class MissingFile(ValueError):
    """A file of a checkpoint that is not there."""


class OtherFile(MissingFile):
    """Something that stands in its place."""


def find_pipeline(path: str | os.PathLike) -> Path:
    """The `pipeline.yaml` of a checkpoint, given itself, its folder, the root of the downloaded repository, or that repository
    in the cache of a hub. ValueError without one."""
    path = Path(path)
    try:
        if path.is_file() and path.suffix in (".yaml", ".yml"):
            return path
        for folder in roots(path):
            for place in PLACES:
                if (found := folder / place / PIPELINE).is_file():
                    return found
    except (OSError, ValueError) as error:  # ValueError: a path with a zero in it
        raise ValueError(f"checkpoint: cannot read {str(path)!r}: {error}") from error
    raise ValueError(
        f"checkpoint: expected a folder with {PIPELINE} or checkpoints/{PIPELINE}, or the file itself, given {str(path)!r}"
    )


def roots(path: Path) -> Iterator[Path]:
    """The folder; in the cache of a hub the snapshot that is meant. ValueError if that cannot be told."""
    yield path
    if not (path / "snapshots").is_dir():
        return
    names = sorted(entry.name for entry in (path / "snapshots").iterdir() if entry.is_dir())
    if len(names) > 1:
        main = path / "refs" / "main"
        named = read_bytes(main, 256).decode(errors="replace").strip() if main.is_file() else None
        if named not in names:
            raise ValueError(f"expected refs/main to name one of {', '.join(names)}, given {named!r}: pass one of them")
        names = [named]
    yield from (path / "snapshots" / name for name in names)


def inside(name: str, where: str) -> str:
    """A path as a checkpoint names it, relative to its folder. ValueError for one that leads out of it as it is written: where
    links on the disk lead is for the user to say."""
    plain = posixpath.normpath(name)
    if (
        re.search(r"[\0\\]", name)
        or re.match(r"/|[A-Za-z]:", name)
        or plain in (".", "..")
        or plain.startswith("../")
        or len(name) > 1024
    ):
        raise ValueError(f"{where}: expected files in the checkpoint's folder, given {shown(name)}")
    return plain


def find_file(folder: Path, name: str, of: str = "checkpoint") -> Path:
    """The file at a path that is `inside`, of what errors call `of`. MissingFile, which tells links that lead nowhere and
    downloads that were not finished."""
    path = folder / name
    try:
        if path.is_file():
            return path
        given = "is missing"
        if path.is_dir():
            given = "is a folder, expected a file"
        elif path.is_symlink():
            given = f"is missing: it links to {os.readlink(path)!r}, where nothing is"
        if partial := next((file for file in _partial(path)), None):
            given += f"; {partial.name} is there: its download was not finished, start it again"
    except (OSError, ValueError) as error:
        given = f"cannot be read: {error}"
    raise MissingFile(f"{of} {str(folder)!r}: {name} {given}")


def _partial(path: Path) -> Iterator[Path]:
    """What downloads that were not finished may have left of a file."""
    for parent in path.parents[:3]:
        for folder in (parent, parent / ".cache" / "huggingface" / "download" / path.parent.relative_to(parent)):
            if folder.is_dir():
                names = (entry for entry in folder.iterdir() if entry.name.startswith(path.name))
                yield from (entry for entry in names if entry.suffix in UNFINISHED)
    for parent in path.parents[:5]:
        if (parent / "blobs").is_dir():  # the cache of a hub names files by what they hold
            yield from (parent / "blobs").glob("*.incomplete")


def weights_beside(folder: Path, name: str) -> str:
    """`name`, which pipeline.yaml has for a file of weights, or where only that is there, the same as .safetensors or .ckpt."""
    if (folder / name).is_file():
        return name
    stem, suffix = posixpath.splitext(name)
    other = stem + (".ckpt" if suffix == ".safetensors" else ".safetensors")
    return other if (folder / other).is_file() else name


def check_present(path: Path, expected: str) -> None:
    """OtherFile if something stands in place of a file: nothing at all, a pointer, a page, an archive, part of a download."""
    head = read_head(path, HEAD, path.name)
    if given := _instead(path, head):
        raise OtherFile(f"{path.name}: expected {expected}, given {given}")


def _instead(path: Path, head: bytes) -> str | None:
    """What a file is and what to do about it, None for one that may be what it should be."""
    text = head.decode("utf-8-sig", errors="replace").strip()
    lower = text[:200].lower()
    if not head:
        return f"an empty file: {AGAIN}"
    if lower.startswith(("version https://git-lfs", "version https://hawser")):
        return "a Git LFS pointer, not what it points to: run 'git lfs pull' in the repository"
    if re.match(r"(<!--.*?-->\s*)*<(!doctype html|html|head|body|title)", lower, re.DOTALL):
        title = re.search(r"<title[^>]*>([^<]{1,80})", text, re.IGNORECASE)
        return f"an HTML page{f', {title[1].strip()!r}' if title else ''}: {AGAIN}"
    if lower.startswith("<"):
        return f"an XML text that begins {shown(text, 60)}: {AGAIN}"
    if lower.startswith("{") and (words := _error_body(path)):
        return f"an answer of a server in JSON, {shown(words, 100)}: {AGAIN}"
    if kind := next((kind for begin, kind in ARCHIVES.items() if head.startswith(begin)), None):
        return f"an archive ({kind}): unpack it"
    if head[257:262] == b"ustar":
        return "an archive (tar): unpack it"
    if head.startswith(b"PK") and path.suffix in (".yaml", ".yml"):
        return "an archive (zip): unpack it"
    if not head.strip(b"\0"):
        return f"zeros: the download was not finished, {AGAIN}"
    if path.suffix in UNFINISHED:
        return f"part of a download: {AGAIN}"
    return None


def _error_body(path: Path) -> str | None:
    """What a server says in JSON, if a file is such an answer."""
    if path.stat().st_size > 1 << 16:
        return None
    try:
        value = parse_json(read_bytes(path, 1 << 16), path.name)
    except ValueError:
        return None
    names = ("error", "message", "detail", "errors")
    if isinstance(value, Mapping) and not value.keys() & {"_target_", "module"}:
        return next((str(value[name]) for name in names if name in value), None)
    return None


def check_weights(path: Path) -> str:
    """Which kind of file of weights it is, by what it holds: "safetensors", "zip" or "pickle", both of torch.

    OtherFile as `check_present`. ValueError for another kind of file, and for one that is damaged, cut short, or holds code,
    as far as that shows without reading the weights.
    """
    check_present(path, "weights")
    head = read_head(path, HEAD, path.name)
    if kind := torch_kind(path, path.name):
        if path.suffix == ".safetensors":  # torch goes by the name
            raise OtherFile(f"{path.name}: expected weights as .safetensors, given a file of torch: rename it to .ckpt")
        return kind
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        load_state(path)
        return "safetensors"
    if not set(head) - set(range(32, 127)) - set(b"\t\r\n"):
        text = shown(head.decode().strip(), 100)
        raise OtherFile(f"{path.name}: expected weights, given a text that begins {text}: {AGAIN}")
    raise ValueError(f"{path.name}: not a file of weights alone: neither of torch nor .safetensors")


def read_weights(path: Path) -> dict[str, LazyArray]:
    """The tensors of a file of weights, read when they are asked for. ValueError as `check_weights`, and for other things than
    tensors by name."""
    kind = check_weights(path)
    return load_state(path) if kind == "safetensors" else _torch_state(path, kind)


def _torch_state(path: Path, kind: str) -> dict[str, LazyArray]:
    """The tensors of a file of torch: a dict of them, or a dict that has such a one as "state_dict"."""
    value = load_torch(path, path.name, kind)
    if isinstance(value, Mapping) and isinstance(value.get("state_dict"), Mapping):
        value = value["state_dict"]
    return tensors_by_name(value, path.name)


def read_pickle(path: Path) -> Any:
    """What a file of torch holds, as it is. ValueError as `check_weights`, and for .safetensors, which hold tensors alone."""
    kind = check_weights(path)
    if kind == "safetensors":
        raise ValueError(f"{path.name}: expected a file of torch, given .safetensors, which hold tensors alone")
    return load_torch(path, path.name, kind)


def tensors_by_name(value: Any, file: str) -> dict[str, LazyArray]:
    """Of what `load_torch` returned of a file. ValueError for anything but tensors by name."""
    import torch

    kinds = (torch.Tensor, torch.nn.Parameter)
    if not isinstance(value, Mapping) or not all(type(tensor) in kinds for tensor in value.values()):
        raise ValueError(f"{file}: expected tensors by name, given {type(value).__name__}")
    if strange := [name for name in value if not isinstance(name, str)]:
        raise ValueError(f"{file}: expected strings as names of tensors, given {shown(strange[0])}")
    dtypes = {torch.float32: DTYPES["F32"], torch.float16: DTYPES["F16"], torch.bfloat16: DTYPES["BF16"]}

    def array(tensor) -> np.ndarray:
        return tensor.detach().float().numpy()

    return {
        name: LazyArray(tensor.shape, dtypes.get(tensor.dtype, np.dtype(object)), lambda tensor=tensor: array(tensor))
        for name, tensor in value.items()
    }
