"""Pipelines by name: the one that is trained and comes with the package, and two of random weights."""

from collections.abc import Mapping
from typing import Any

from sam3d_tvm.artifacts import SeededSource, Source
from sam3d_tvm.checks import check_choice
from sam3d_tvm.config import PRESETS
from sam3d_tvm.tiny import NAME, TinySource

NAMES = (NAME, *PRESETS)


def preset_source(name: str, seed: int = 0, depth_model: bool = False) -> Source:
    """The weights of a preset: "tiny" is trained, "random-tiny" and "full" are random, from `seed`.

    depth_model: whether there is one, of random weights too. ValueError for another name, a seed below 0, and for what only
    random weights have: a depth model, and seeds.
    """
    check_choice("preset", name, NAMES)
    if name != NAME:
        return SeededSource(name, seed, depth_model)
    if depth_model:
        raise ValueError(
            f"depth_model: expected none with preset {NAME!r}, which was trained without one; 'random-tiny' has one"
        )
    if seed != 0:
        raise ValueError(f"seed: expected none with preset {NAME!r}, whose weights are trained, given {seed!r}")
    return TinySource()


def source_from_json(value: Mapping[str, Any]) -> Source:
    """The source whose `to_json` returned this."""
    if value["name"] == NAME:
        return TinySource(value["folder"])
    return SeededSource(**value)
