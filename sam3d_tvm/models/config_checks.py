"""What the configs of models share: values by name, and the checks of transformers."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any


def from_names(config: type, values: Mapping) -> Any:
    """A config, which is a dataclass, of values by the names of its fields; ValueError for names unknown or missing."""
    known = {field.name: field.default for field in fields(config)}
    if extra := sorted(set(values) - set(known)):
        raise ValueError(f"config: expected names among {', '.join(known)}, given {', '.join(extra)} too")
    if missing := [name for name, default in known.items() if default is MISSING and name not in values]:
        raise ValueError(f"config: {', '.join(missing)} missing")
    return config(**values)


def check_transformer(config: Any) -> None:
    """ValueError unless heads divide `model_channels`, and the feed-forward layers have a width."""
    if config.heads < 1 or config.model_channels % config.heads:
        raise ValueError(f"num_heads: expected a divisor of model_channels {config.model_channels}, given {config.heads}")
    if isinstance(config.mlp_ratio, bool) or not isinstance(config.mlp_ratio, (int, float)) or config.hidden < 1:
        raise ValueError(f"mlp_ratio: expected a positive number, given {config.mlp_ratio!r}")


def check_only(config: Any, values: Mapping) -> None:
    """ValueError for a variant of the model that nobody has trained: only these `values` are known."""
    for name, value in values.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name}: expected {value!r}, given {getattr(config, name)!r}")
