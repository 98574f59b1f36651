"""Weights in the place of those that come with the package, seeded, for tests of what is around them."""

from pathlib import Path

import numpy as np

from sam3d_tvm.models import MODELS
from sam3d_tvm.tiny import TINY, save_weights


def write_weights(folder: Path, seed: int = 0) -> Path:
    """A folder of weights of `TINY`, as `TinySource` reads it."""
    for name, config in TINY.models.items():
        save_weights(folder, name, MODELS[name].random_weights(config, seed))
    return folder


def arrays(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of model `name` as the folder has them."""
    state = MODELS[name].random_weights(getattr(TINY, name), seed)
    return {key: np.asarray(value).astype(np.float16) for key, value in state.items()}
