"""Photos for the tests of batches, and what a folder of results holds."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.sam3d_tvm.tiny_pipeline import disc_photo

OWN = {"record.json", "seconds.csv"}  # files in which seconds are, so that no two runs are equal


def write_photo(path: Path, shift: int = 0) -> Path:
    """A small photo with its mask as alpha channel; another one for each shift."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.roll(disc_photo(), shift, 1)).save(path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder that two equal runs have in common, by path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in OWN and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(files)}
