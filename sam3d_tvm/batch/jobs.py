"""Which objects a folder or a CSV asks for: photos, their masks and point maps, by name.

A folder may hold, beside each other:

    lamp.png  lamp_mask.png                     one object, "lamp"; the suffixes may differ, and a mask may be .npy
    lamp.png  lamp_mask_1.png  lamp_mask_2.png  an object for each mask, "lamp/1" and "lamp/2"
    lamp.png                                    one object, whose mask is the photo's own alpha channel
    lamp/image.png  lamp/0.png  lamp/1.png      an object for each mask, "lamp/0" and "lamp/1", as SAM-3D-Objects keeps examples
    lamp_pointmap.npy, .npz or .pt              the point map of the photo "lamp"; in lamp/ it is called pointmap.npy

A CSV has the columns photo, mask (several with ; between), pointmap, seed and name, of which all but the first may be missing.
Whatever is a picture and has no place becomes a job with a `problem`, so that it is reported and not passed over.
"""

import csv
import io
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

PICTURES = frozenset(  # suffixes: a file of another one is no photo
    f".{name}" for name in ("png", "jpg", "jpeg", "jpe", "webp", "tif", "tiff", "bmp", "gif", "ppm", "pgm", "pbm", "jp2", "j2k")
) | {".heic", ".heif", ".avif"}
MASK_ARRAYS = frozenset({".npy"})
POINTMAPS = frozenset({".npy", ".npz", ".pt", ".pth"})
COLUMNS = ("photo", "mask", "pointmap", "seed", "name")
TABLE_BYTES, TABLE_LINES = 64 << 20, 100_000  # of a CSV
LONGEST_NAME = 200  # bytes of a part of a name, as most file systems take 255 and files beside it have longer names

LAYOUTS = (
    "name.png with name_mask.png, or with name_mask_1.png, name_mask_2.png; name.png with a mask in its alpha channel; "
    "folders name/ with image.png and 0.png, 1.png; or a CSV with the columns " + ", ".join(COLUMNS)
)
_MASK = re.compile(r"(.+)_mask(?:_([0-9]+))?", re.IGNORECASE | re.DOTALL)
_POINTMAP = re.compile(r"(.+)_pointmap", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"[0-9]+")
_FORBIDDEN = frozenset('\\/:*?"<>|' if os.name == "nt" else "")
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})


@dataclass(frozen=True)
class Job:
    """One object. name: parts with `/` between, each the name of a folder. mask: None for the photo's alpha channel. seed: None
    for that of all. problem: why it cannot be run, or nothing."""

    name: str
    photo: Path | None = None
    mask: Path | None = None
    pointmap: Path | None = None
    seed: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class Jobs:
    """All objects that a folder or a CSV asks for, in the order of the results. root: the folder that paths are shown from.
    ignored: files that are no pictures, and folders without any."""

    objects: tuple[Job, ...]
    root: Path
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.objects)

    def shown(self, path: Path | None) -> str:
        """A path as the results have it: from `root` where it lies in it, with / between."""
        if path is None:
            return ""
        return printable((path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix())


def read_jobs(source: str | os.PathLike, output: str | os.PathLike | None = None, is_table: bool = False) -> Jobs:
    """The jobs of a folder, in natural order of their names, or of a .csv file, in the order of its lines.

    output: a folder of results, which is passed over where it lies in the other, and must not be it. is_table: whether a file
    is a CSV whatever its suffix.

    ValueError for a source that is neither, that cannot be read or holds nothing, and for a CSV of other columns.
    """
    source = Path(source)
    if is_table or (source.suffix.lower() == ".csv" and not source.is_dir()):
        found = Jobs(tuple(_rows(source)), source.parent)
    elif source.is_dir():
        if output is not None and Path(output).resolve() == source.resolve():
            raise ValueError(f"output: expected another folder than that of the photos, given {str(output)!r}")
        found = _folder(source, None if output is None else Path(output))
    else:
        raise ValueError(f"photos: expected a folder or a .csv file, given {str(source)!r}, which is neither")
    if not found.objects:
        raise ValueError(f"photos: expected photos and masks as {LAYOUTS}; found none in {str(source)!r}")
    return replace(found, objects=tuple(_checked(found.objects)))


def natural(name: str) -> tuple:
    """A key that sorts img2 before img10."""
    digits = re.split(r"([0-9]+)", name.casefold())
    return tuple((0, len(part.lstrip("0")), part.lstrip("0")) if n % 2 else (1, 0, part) for n, part in enumerate(digits)), name


def printable(text: str) -> str:
    """Text as UTF-8 can hold it: of a file's name the bytes that are none are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _folder(folder: Path, output: Path | None) -> Jobs:
    files, folders = _entries(folder)
    jobs, ignored = _of_files(folder, files)
    skipped = None if output is None else output.resolve()
    for path in folders:
        if skipped is not None and (path.resolve() == skipped or path.resolve() in skipped.parents):
            continue
        inside, below = _entries(path)
        pictures = [file for file in inside if file.suffix.lower() in PICTURES]
        if not pictures:
            ignored.append(f"{path.name}/")
            continue
        images = [file for file in pictures if file.stem.lower() == "image"]
        if images:
            jobs += _of_example(path, images, inside, ignored)
        else:
            given = f"given {pictures[0].name} without it"
            jobs.append(
                Job(path.name, problem=f"folder {path.name!r}: expected image.png, or another picture of that name, {given}")
            )
        ignored += [f"{path.name}/{deeper.name}/" for deeper in below]
    return Jobs(tuple(sorted(jobs, key=lambda job: natural(job.name))), folder, tuple(map(printable, ignored)))


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files and folders in a folder, but for hidden ones, in natural order. ValueError for one that cannot be read."""
    try:
        names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=natural)
    except OSError as error:
        raise ValueError(f"photos: cannot read the folder {str(folder)!r}: {error.strerror}") from error
    paths = [folder / name for name in names]
    return [path for path in paths if not path.is_dir()], [path for path in paths if path.is_dir()]


def _of_files(folder: Path, files: Sequence[Path]) -> tuple[list[Job], list[str]]:
    """The jobs of photos and masks that lie in one folder, and the names of files that are neither."""
    if images := [file for file in files if file.stem.lower() == "image" and file.suffix.lower() in PICTURES]:
        numbered = [file for file in files if _is_numbered(file)]
        if numbered:  # the folder is itself one of SAM-3D-Objects' examples
            ignored: list[str] = []
            own = {file.name for file in (*images, *numbered)} | {f"pointmap{suffix}" for suffix in POINTMAPS}
            jobs = _of_example(folder, images, [file for file in files if file.name in own], ignored, "image")
            more, others = _of_files(folder, [file for file in files if file.name not in own])
            return jobs + more, ignored + others
    photos, masks, pointmaps = defaultdict(list), defaultdict(list), defaultdict(list)
    ignored = []
    for file in files:
        suffix = file.suffix.lower()
        if suffix in POINTMAPS and (match := _POINTMAP.fullmatch(file.stem)):
            pointmaps[match[1]].append(file)
        elif suffix in PICTURES | MASK_ARRAYS and (match := _MASK.fullmatch(file.stem)):
            masks[match[1]].append((match[2], file))
        elif suffix in PICTURES:
            photos[file.stem].append(file)
        else:
            ignored.append(file.name)
    jobs = []
    for stem, found in photos.items():
        jobs += _of_photo(stem, found, masks.pop(stem, ()), pointmaps.pop(stem, ()))
    for stem, found in masks.items():
        jobs += [
            Job(file.name, mask=file, problem=f"a mask without a photo: expected {stem}.png or another picture")
            for _, file in found
        ]
    for stem, found in pointmaps.items():
        jobs += [Job(file.name, pointmap=file, problem=f"a point map without a photo: expected {stem}.png") for file in found]
    return jobs, ignored


def _of_example(
    folder: Path, images: Sequence[Path], files: Sequence[Path], ignored: list[str], name: str | None = None
) -> list[Job]:
    """The jobs of a folder with a picture called image and masks called by number."""
    name = folder.name if name is None else name
    masks = [(file.stem, file) for file in files if _is_numbered(file)]
    pointmaps = [file for file in files if file.stem.lower() == "pointmap" and file.suffix.lower() in POINTMAPS]
    known = {*images, *pointmaps, *(file for _, file in masks)}
    jobs = _of_photo(name, images, masks, pointmaps)
    for file in files:
        if file in known:
            continue
        if file.suffix.lower() in PICTURES:
            problem = "expected image.png and masks called 0.png, 1.png, ..., as the folder has them"
            jobs.append(Job(f"{name}/{file.name}", file, problem=problem))
        else:
            ignored.append(f"{folder.name}/{file.name}")
    return jobs


def _is_numbered(file: Path) -> bool:
    return file.suffix.lower() in PICTURES | MASK_ARRAYS and _NUMBER.fullmatch(file.stem) is not None


def _of_photo(
    name: str, photos: Sequence[Path], masks: Iterable[tuple[str | None, Path]], pointmaps: Sequence[Path]
) -> list[Job]:
    """The jobs of one photo, an object for each mask; one with a problem if there are several photos or point maps."""
    for what, found in (("photos", photos), ("point maps", pointmaps)):
        if len(found) > 1:
            given = ", ".join(file.name for file in found)
            return [Job(name, photos[0], problem=f"{what} of one name: expected one, given {given}")]
    pointmap = pointmaps[0] if pointmaps else None
    jobs = [
        Job(name if number is None else f"{name}/{number}", photos[0], mask, pointmap)
        for number, mask in sorted(masks, key=lambda mask: natural(mask[0] or ""))
    ]
    return jobs or [Job(name, photos[0], None, pointmap)]


def _rows(path: Path) -> Iterator[Job]:
    """The jobs of a CSV."""
    from sparse_ops.deploy.reading import read_bytes  # and TVM, which a worker that only knows jobs imports later

    what = f"list {str(path)!r}"
    data = read_bytes(path, TABLE_BYTES, what)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "bytes that are none"
        raise ValueError(f"{what}: expected text in UTF-8, given {kind}: save it as CSV UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        _check_header(header, what)
        for row in reader:
            if reader.line_num > TABLE_LINES:
                raise ValueError(f"{what}: expected at most {TABLE_LINES:,} lines, given more: cut it into several lists")
            if any(cell.strip() for cell in row):
                yield from _of_row(
                    dict(zip(header, map(str.strip, row), strict=False)), len(row) > len(header), reader.line_num, path.parent
                )
    except csv.Error as error:
        raise ValueError(f"{what}: line {reader.line_num}: {error}") from error


def _check_header(header: Sequence[str], what: str) -> None:
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise ValueError(f"{what}: expected commas between columns, given {header[0]!r}")
    if unknown := [name for name in header if name not in COLUMNS]:
        raise ValueError(
            f"{what}: expected columns among {', '.join(COLUMNS)}, given {', '.join(map(repr, unknown))[:500]} too"
        )
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise ValueError(f"{what}: expected each column once, given {', '.join(twice)} twice")
    if "photo" not in header:
        raise ValueError(f"{what}: expected a column photo, given {', '.join(header) or 'an empty file'}")


def _of_row(row: dict[str, str], too_long: bool, line: int, folder: Path) -> list[Job]:
    photo, seed = row["photo"], None
    masks = [mask.strip() for mask in row.get("mask", "").split(";") if mask.strip()]
    name = row.get("name") or _default_name(photo) or f"line {line}"
    problem = ""
    if too_long:
        problem = "expected no more values than columns"
    elif not photo:
        problem = "photo: expected a file, given none"
    elif any(_control(value) for value in row.values()):
        problem = "expected no control characters"
    if row.get("seed"):
        if _NUMBER.fullmatch(row["seed"]) and len(row["seed"]) <= 19:
            seed = int(row["seed"])
        else:
            problem = problem or f"seed: expected an integer of at least 0, given {row['seed']!r}"
    if problem:
        return [Job(name, problem=f"line {line}: {problem}")]
    pointmap = folder / row["pointmap"] if row.get("pointmap") else None
    found = [(None, None)] if not masks else [(None, masks[0])] if len(masks) == 1 else [*enumerate(masks, 1)]
    return [
        Job(
            name if number is None else f"{name}/{number}",
            folder / photo,
            None if mask is None else folder / mask,
            pointmap,
            seed,
        )
        for number, mask in found
    ]


def _default_name(photo: str) -> str:
    """The path of a photo without its suffix; the file's name alone where the path leads out of the folder."""
    path = Path(photo)
    parts = path.with_suffix("").parts if path.name else ()
    return "/".join(parts if not path.is_absolute() and ".." not in parts else parts[-1:])


def _checked(jobs: Iterable[Job]) -> Iterator[Job]:
    """The jobs, with a problem for each name that is no folder's, and for those that several have."""
    jobs = list(jobs)
    count = Counter(_folded(job.name) for job in jobs)
    for job in jobs:
        problem = job.problem or _bad_name(job.name)
        if not problem and (several := count[_folded(job.name)]) > 1:
            problem = f"name: expected one object called {job.name!r}, upper or lower case, given {several}: rename all but one"
        yield replace(job, name=printable(job.name), problem=problem)


def _folded(name: str) -> str:
    """What two names have in common that are one file on some systems."""
    return unicodedata.normalize("NFC", name).casefold()


def _bad_name(name: str) -> str:
    """Why a name cannot be that of a folder in the output folder, or nothing."""
    expected = "name: expected the name of a folder, or several with / between"
    if printable(name) != name:
        return f"{expected}, in UTF-8, given {name!r}"
    for part in name.split("/"):
        if part.startswith(".") or not part.strip():
            return f"{expected}, none of them empty or beginning with a point, given {name!r}"
        if _control(part) or set(part) & _FORBIDDEN or (os.name == "nt" and part != part.strip(" .")):
            return f"{expected}, without characters that no folder can have, given {name!r}"
        if len(part.encode()) > LONGEST_NAME:
            return f"{expected}, of at most {LONGEST_NAME} bytes each, given {len(part.encode())}"
        if os.name == "nt" and part.split(".")[0].casefold() in _DEVICES:
            return f"{expected}, none of them that of a device, given {name!r}"
    return ""


def _control(text: str) -> bool:
    return any(unicodedata.category(character) == "Cc" for character in text)
