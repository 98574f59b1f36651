"""What the first stage comes to, as `structure.safetensors`: all that a run needs to go on from there.

coords       int32 [N, 4], voxels as (0, x, y, z)
points       float32 [N, 3], their middles in the object's units
rotation, translation, scale        float32 [4], [3], [3], the pose as it is, see `pose`
latents      float32 [N, C], once the second generator has run
metadata     "resolution" of the grid; "made_with": JSON, what decides the result, by stage, see `Pipeline.generate`
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from sam3d_tvm.checks import check_coords, check_finite
from sam3d_tvm.pose import Pose
from sparse_ops.deploy.files import save_safetensors

STRUCTURE = "structure.safetensors"
DECODERS = "decoders"
STAGES = ("structure", "latents", DECODERS)  # those of `made_with`, each a table of options by name
GREATEST_RESOLUTION = 1024
GREATEST_OPTIONS = 1 << 20  # characters
POSE = {"rotation": 4, "translation": 3, "scale": 3}


@dataclass(frozen=True, eq=False)
class Structure:
    """coords: int32 [N, 4] on a grid of `resolution`; pose: of one object; latents: float32 [N, C], if they are known.
    made_with: what decided them, by stage; empty if that is not known."""

    coords: np.ndarray
    resolution: int
    pose: Pose
    latents: np.ndarray | None = None
    made_with: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def points(self) -> np.ndarray:
        """The middles of the voxels in the object's units, float32 [N, 3]."""
        return (self.coords[:, 1:].astype(np.float32) + np.float32(0.5)) / np.float32(self.resolution) - np.float32(0.5)

    def save(self, path: str | os.PathLike) -> None:
        arrays = {"coords": self.coords, "points": self.points, **{name: getattr(self.pose, name)[0] for name in POSE}}
        if self.latents is not None:
            arrays["latents"] = self.latents
        made_with = json.dumps(self.made_with, sort_keys=True)
        save_safetensors(path, arrays, {"resolution": str(self.resolution), "made_with": made_with})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Structure":
        """ValueError for a file that is missing, damaged, or holds something else, with its name."""
        path = Path(path)
        try:
            with safetensors.safe_open(path, "np") as file:  # checks the header, and the length of the file
                metadata, names = file.metadata() or {}, set(file.keys())
                if missing := {"coords", *POSE} - names:
                    raise ValueError(f"expected {', '.join(sorted(missing))}, which later versions write")
                arrays = {name: file.get_tensor(name) for name in ("coords", "latents", *POSE) if name in names}
            return cls._checked(arrays, metadata)
        except (OSError, ValueError, TypeError, RecursionError, safetensors.SafetensorError) as error:
            raise ValueError(f"structure {str(path)!r}: {error}") from error

    @classmethod
    def _checked(cls, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> "Structure":
        coords, latents, text = arrays["coords"], arrays.get("latents"), metadata.get("resolution", "")
        if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= GREATEST_RESOLUTION):
            raise ValueError(f"expected a resolution from 1 to {GREATEST_RESOLUTION} in its metadata, given {text[:20]!r}")
        if coords.dtype != np.int32 or coords.ndim != 2 or coords.shape[1] != 4:
            raise ValueError(f"coords: expected int32 [N, 4], given {coords.dtype} {list(coords.shape)}")
        check_coords(coords, 1, int(text))
        if len(np.unique(coords, axis=0)) != len(coords):
            raise ValueError("coords: expected every voxel once")
        if latents is not None:
            if latents.dtype != np.float32 or latents.ndim != 2 or len(latents) != len(coords):
                raise ValueError(f"latents: expected float32 [{len(coords)}, C], given {latents.dtype} {list(latents.shape)}")
            check_finite("latents", latents)
        for name, size in POSE.items():
            if arrays[name].shape != (size,) or arrays[name].dtype != np.float32:
                raise ValueError(f"{name}: expected float32 [{size}], given {arrays[name].dtype} {list(arrays[name].shape)}")
        made_with = metadata.get("made_with", "{}")
        value = json.loads(made_with) if len(made_with) <= GREATEST_OPTIONS else None
        if not isinstance(value, Mapping) or not all(isinstance(options, Mapping) for options in value.values()):
            raise ValueError("made_with: expected tables of options by stage in its metadata")
        return cls(coords, int(text), Pose(*(arrays[name][None] for name in POSE)), latents, value)


def differences(ours: Mapping[str, Mapping[str, Any]], theirs: Mapping[str, Mapping[str, Any]], stages: Sequence[str]) -> str:
    """What differs in the options of two runs, in words: each option, what it was for theirs, and what it is for ours. Of
    decoders, of which one run may have more, those that both have."""
    found: dict[str, None] = {}  # each once, in order
    for stage in stages:
        ours_here, theirs_here = ours.get(stage, {}), theirs.get(stage, {})
        both = [name for name in ours_here if name in theirs_here]
        for name in both if stage == DECODERS else {**ours_here, **theirs_here}:
            if (given := ours_here.get(name)) != (made := theirs_here.get(name)):
                found[f"{name} {_word(made)}, given {_word(given)}"] = None
    return "; ".join(found)


def _word(value: Any) -> str:
    """An option as people are told of it: digests are long, and say no more than that they differ."""
    if value is None:
        return "none"
    return f"{value[:8]}..." if isinstance(value, str) and len(value) >= 32 else str(value)
