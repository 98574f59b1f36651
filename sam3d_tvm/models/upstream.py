"""Upstream's names in the .yaml files of a checkpoint, and how the values there are picked."""

from collections.abc import Mapping
from typing import Any

# How `_target_`s begin.
TDFY = "sam3d_objects.model.backbone.tdfy_dit.models."
EMBEDDERS = "sam3d_objects.model.backbone.dit.embedder."
# Where generators and their condition embedders lie: the path in their .yaml, and how the names of their weights begin.
GENERATOR = (("module", "generator", "backbone"), "_base_models.generator.reverse_fn.backbone.")
CONDITION = (("module", "condition_embedder", "backbone"), "_base_models.condition_embedder.")


def pick(
    values: Mapping[str, Any], taken: tuple[str, ...], only: Mapping[str, Any], ignored: tuple[str, ...]
) -> dict[str, Any]:
    """The values of a model that are `taken`. ValueError for `only` if another value is given than the one that this package
    has, and for names that are in none of the three."""
    for name, value in only.items():
        if values.get(name, value) != value:
            raise ValueError(f"{name}: expected {value!r}, given {values[name]!r}")
    if unknown := sorted(values.keys() - {*taken, *only, *ignored}):
        raise ValueError(f"expected names among {', '.join([*taken, *only, *ignored])}, given {', '.join(unknown)} too")
    return {name: values[name] for name in taken if name in values}


def without(values: Mapping[str, Any], *ignored: str) -> dict[str, Any]:
    """The values of a model but those `ignored`, which have no part in what is computed here."""
    return {name: value for name, value in values.items() if name not in ignored}
