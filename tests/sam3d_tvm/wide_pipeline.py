"""The pipeline of the preset "random-tiny" with generators of layers wide enough for integers, compiled once for all tests."""

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

from sam3d_tvm.artifacts import Artifacts, SeededSource, begin, compile_model, is_made
from tests.sam3d_tvm.tiny_pipeline import SHARED as TINY
from tests.sam3d_tvm.tiny_pipeline import locked, tiny_artifacts

WIDTH = 256
PRECISION = "int8"
INTEGERS = ("ss_generator", "slat_generator")  # the models that have integer layers


class WideSource(SeededSource):
    """Takes the name of a preset, as who takes its place does."""

    def __init__(self, name: str = "random-tiny", seed: int = 0, depth_model: bool = False):
        super().__init__(name, seed, depth_model)
        flow = replace(self.config.ss_generator, model_channels=WIDTH, num_blocks=1)
        slat = replace(self.config.slat_generator, model_channels=WIDTH, num_blocks=2)
        models = {"ss_generator": flow, "slat_generator": slat, "slat_decoder_mesh": None, "slat_decoder_gs": None}
        self.config = replace(self.config, **models)


@cache
def wide_artifacts() -> Artifacts:
    """Compiled models in int8, not calibrated. Nobody writes into their folder."""
    source, folder = WideSource(), TINY.with_name("wide_pipeline")
    with locked("begin_wide"):
        begin(source, folder, PRECISION)
    for name in source.config.models:
        with locked(f"{name}_wide"):
            if is_made(source, folder, name, PRECISION):
                continue
            if name not in INTEGERS:  # those are as they are in float32
                shutil.rmtree(folder / name, ignore_errors=True)
                shutil.copytree(tiny_artifacts().folder / name, folder / name)
            if not is_made(source, folder, name, PRECISION):
                compile_model(source, folder, name, PRECISION)
    return Artifacts(folder)


def copied_wide_artifacts(folder: Path) -> Path:
    """A copy of them that a test may change."""
    shutil.copytree(wide_artifacts().folder, folder)
    return folder
