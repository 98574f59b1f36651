"""The pipeline of the preset "random-tiny" with its depth model, compiled once for all tests; and its file as it is
published."""

import dataclasses
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import torch

from sam3d_tvm.artifacts import Artifacts, SeededSource, begin, compile_model, is_made
from sam3d_tvm.config import preset
from sam3d_tvm.models import MODELS
from sam3d_tvm.models.moge.config import MogeConfig
from tests.sam3d_tvm.tiny_pipeline import SHARED, locked, tiny_artifacts

DEPTH = "depth_model"
SOURCE = SeededSource("random-tiny", depth_model=True)
FOLDER = SHARED.with_name("tiny_pipeline_depth")
CONFIG: MogeConfig = preset("random-tiny", depth_model=True).depth_model
ENCODER = "tiny_encoder"  # as tests put it into `HUB`


@cache
def tiny_depth_artifacts() -> Artifacts:
    """Compiled models with the weights of seed 0, those of `tiny_artifacts` and the depth model. Nobody writes into them."""
    plain = tiny_artifacts()
    with locked(DEPTH):
        begin(SOURCE, FOLDER)
        for name in plain.config.models:
            if not is_made(SOURCE, FOLDER, name):
                shutil.rmtree(FOLDER / name, ignore_errors=True)
                shutil.copytree(plain.folder / name, FOLDER / name)
        if not is_made(SOURCE, FOLDER, DEPTH):
            compile_model(SOURCE, FOLDER, DEPTH)
    return Artifacts(FOLDER)


def model_config() -> dict:
    """What the file of the tiny model has as its config, whose encoder is called `ENCODER`."""
    values = {name: value for name, value in dataclasses.asdict(CONFIG).items() if name != "encoder"}
    low, high = values.pop("num_tokens_range")
    values |= {"trained_area_range": [196 * low, 196 * high], "encoder": ENCODER, "output_mask": True, "split_head": True}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """The weights of the tiny model as the file has them."""
    state = MODELS[DEPTH].random_weights(CONFIG, seed)
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def write_model(path: Path, **changes) -> Path:
    """The file as it is published; `changes`: what stands in place of "model_config" or "model"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model_config": model_config(), "model": weights(), **changes}, path)
    return path
