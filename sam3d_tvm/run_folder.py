"""A folder of results, in which every file is written as soon as it is ready, and `run.json` says which files a run wrote:

    {"format": 1,
     "objects": ["object_1", ...],       folders below, of the objects of a scene, with a run.json of their own
     "files": {"splat.ply": {"bytes": 1234, "sha256": "...", "of": "..."}, ...},
     "evaluations": {"structure": {"conditional": 25, "unconditional": 19, "forecast": 0}, ...}}       of the object, by stage

So a run that is taken up again knows what is whole, and a new run what an earlier one left: that is removed when the first new
file is written, and nothing else ever is. A file that was changed since is not the run's any more.
"""

import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sparse_ops.deploy.files import write_bytes
from sparse_ops.deploy.reading import digest, parse_json

RUN = "run.json"
FORMAT = 1
PROBE = b"\0" * 4096
GREATEST = 1 << 24  # bytes of run.json
OBJECT = re.compile(r"object_[1-9][0-9]{0,5}")


class RunFolder:
    """The files of a run in `folder`. `resume`: whether those that are there are kept, else they are an earlier run's.

    Raises ValueError for a folder with a run.json of another program.
    """

    def __init__(self, folder: str | os.PathLike, resume: bool = False):
        self.folder, self._resume = Path(folder), resume
        self._found = _read(self.folder)
        self._begun, self._verified = False, set()
        self._files: dict[str, dict[str, Any]] = dict(self._found["files"]) if resume else {}
        self._objects: list[str] = list(self._found["objects"]) if resume else []
        self._evaluations: dict[str, dict[str, int]] = dict(self._found["evaluations"]) if resume else {}

    def has(self, name: str, of: str = "") -> bool:
        """Whether a run that is taken up again wrote the file of that name, of this, and it is as it was."""
        entry = self._files.get(name)
        if entry is None or entry["of"] != of:
            return False
        if name not in self._verified and _is_whole(self.folder / name, entry):
            self._verified.add(name)
        return name in self._verified

    def check_objects(self, count: int) -> None:
        """ValueError unless `count` objects, one of which lies in the folder itself, can go on with a run that is taken up."""
        has = len(self._objects) or min(len(self._files), 1)
        if has and ((count > 1) != bool(self._objects) or count < has):
            expected = f"at least {max(has, 2)}" if self._objects else "one at most"
            raise ValueError(f"masks: expected {expected}, as the run to be resumed has, given {count}")

    @property
    def names(self) -> dict[str, list[str]]:
        """The files that a run wrote there, and to the folders below, by folder; "" for this one."""
        below = {name: list(_read(self.folder / name)["files"]) for name in self._objects}
        return {"": list(self._files), **below}

    def write(self, name: str, write: Callable[[Path], None], of: str = "") -> Path:
        """The path of the file, which `write(path)` has written, whole or not at all; kept if it is there. `of`: what decides
        what it holds, beside what the whole run is of."""
        path = self.folder / name
        if not self.has(name, of):
            self._begin()
            write(path)
            self._files[name] = {"bytes": path.stat().st_size, "sha256": digest(path), "of": of}
            self._verified.add(name)
            self._save()
        return path

    def note_evaluations(self, evaluations: Mapping[str, Mapping[str, int]]) -> None:
        """How often models were evaluated, by stage; written with the next file. Of other stages what is known stays."""
        self._evaluations |= {stage: dict(counts) for stage, counts in evaluations.items()}

    def below(self, name: str) -> "RunFolder":
        """The folder of an object of a scene."""
        if not OBJECT.fullmatch(name):
            raise ValueError(f"name: expected object_ and a number, given {name!r}")
        return _Below(self, name)

    def keep_only(self, names: Sequence[str]) -> None:
        """Removes what a run that was taken up again wrote and does not need any more: all but the files of these names."""
        if stale := [name for name in self._files if name not in names]:
            for name in stale:
                _remove(self.folder / name, self._files.pop(name))
            self._save()

    def keep_objects(self, names: Sequence[str]) -> None:
        """The same for the folders of objects."""
        if stale := [name for name in self._objects if name not in names]:
            for name in stale:
                _forget_object(self.folder / name)
            self._objects = [name for name in self._objects if name in names]
            self._save()

    def _begin(self) -> None:
        """Before the first file is written: an earlier run's make way."""
        if not self._begun:
            self._begun = True
            if not self._resume:
                forget(self.folder)

    def _begin_object(self, name: str) -> None:
        self._begin()
        if name not in self._objects:
            self._objects.append(name)
            self._save()

    def _save(self) -> None:
        value = {"format": FORMAT, "objects": self._objects, "files": self._files}
        value |= {"evaluations": self._evaluations} if self._evaluations else {}
        write_bytes(self.folder / RUN, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


class _Below(RunFolder):
    """The folder of an object: the one above knows of it before it is made."""

    def __init__(self, above: RunFolder, name: str):
        super().__init__(above.folder / name, above._resume)
        self._above, self._name = above, name

    def _begin(self) -> None:
        if not self._begun:
            self._above._begin_object(self._name)
        super()._begin()


def check_writable(folder: str | os.PathLike) -> None:
    """Writes a file to the folder, which is made for that, and removes what it made. ValueError if something on the way is no
    folder; OSError, with the folder's name, where nothing can be written: it is read-only, or the disk is full."""
    folder = Path(folder)
    missing = missing_folders(folder)
    made, probe = [], folder / f".{secrets.token_hex(8)}.tmp"
    try:
        for part in reversed(missing):
            part.mkdir(exist_ok=True)
            made.append(part)
        try:
            write_bytes(probe, PROBE)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        for part in reversed(made):
            with suppress(OSError):  # another process may have put something there
                part.rmdir()


def missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, innermost first. ValueError if something on the way is no folder."""
    missing = []
    for part in (folder, *folder.parents):
        if part.is_dir():
            break
        if os.path.lexists(part):
            what = "a file" if part.exists() else "a link to nothing"
            raise ValueError(f"output: expected a folder, given {str(folder)!r}, where {str(part)!r} is {what}")
        missing.append(part)
    return missing


def check_free(folder: Path, names: Iterable[str]) -> None:
    """ValueError if a folder is where a file of one of these names is to be written."""
    for name in names:
        if (folder / name).is_dir():
            raise ValueError(f"output: expected no folder of the name of a file of results, given {str(folder / name)!r}")


def forget(folder: Path) -> None:
    """Removes the files that a run wrote to the folder and that are as they were, and the folders of its objects, where these
    are empty then."""
    found = _read(folder)
    for name, entry in found["files"].items():
        _remove(folder / name, entry)
    for name in found["objects"]:
        _forget_object(folder / name)
    with suppress(FileNotFoundError, NotADirectoryError):
        (folder / RUN).unlink()  # which is ours, or `_read` had raised


def _forget_object(folder: Path) -> None:
    forget(folder)
    with suppress(OSError):
        folder.rmdir()


def _read(folder: Path) -> dict[str, Any]:
    """What run.json says; nothing where there is none. Names lead nowhere else. ValueError for one that is not ours."""
    try:
        with open(folder / RUN, "rb") as file:
            data = file.read(GREATEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {"files": {}, "objects": [], "evaluations": {}}
    try:
        value = parse_json(data, RUN) if len(data) <= GREATEST else {}
        if value["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}")
        files = {
            name: {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"]), "of": str(entry["of"])}
            for name, entry in value["files"].items()
            if _is_plain(name)
        }
        evaluations = {
            str(stage): {str(name): int(count) for name, count in counts.items()}
            for stage, counts in value.get("evaluations", {}).items()
        }
        objects = [name for name in value["objects"] if OBJECT.fullmatch(name)]
        return {"files": files, "objects": objects, "evaluations": evaluations}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"output: expected no {RUN} that this program has not written, given {str(folder / RUN)!r}") from error


def _is_plain(name: str) -> bool:
    """Whether it is the name of a file in the folder, and not of run.json."""
    return name == Path(name).name and name not in ("", "..", RUN)


def _is_whole(path: Path, entry: Mapping[str, Any]) -> bool:
    try:
        return not path.is_symlink() and path.stat().st_size == entry["bytes"] and digest(path) == entry["sha256"]
    except OSError:
        return False


def _remove(path: Path, entry: Mapping[str, Any]) -> None:
    if _is_whole(path, entry):
        with suppress(FileNotFoundError):
            path.unlink()
