"""What the integer layers of a pipeline keep in floats, found by running it on photos, see `sparse_ops.deploy.calibrate`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sam3d_tvm.artifacts import (
    CALIBRATION,
    KEY,
    LOCK,
    Artifacts,
    OnCompile,
    Source,
    compile_artifacts,
    key_of,
    made_from,
    save_model,
    say_waiting,
)
from sam3d_tvm.lock import locked
from sam3d_tvm.models import MODELS
from sam3d_tvm.outputs import DECODED, FORMATS
from sam3d_tvm.photo.images import Picture
from sam3d_tvm.pipeline import Pipeline, Progress, of_object
from sparse_ops.deploy.calibrate import Largest, uncalibrated, watch, with_channels
from sparse_ops.deploy.component import Component
from sparse_ops.transform.precision import QUANTIZED, gains


class Calibrated(NamedTuple):
    """Of the integer layers of a model: how many have channels apart now, and how many there are."""

    layers: int
    of: int


def calibrate(
    source: Source,
    folder: str | os.PathLike,
    objects: Sequence[tuple[Picture, Picture | None]],
    precision: str = QUANTIZED[0],
    *,
    seed: int = 42,
    steps: int | None = None,
    slat_steps: int | None = None,
    on_model: OnCompile = lambda name, done, total: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Calibrated]:
    """Runs the pipeline of `source` on `objects`, photos with masks, and writes into its artifacts in `folder` which channels
    its integer layers keep in floats. What is not compiled yet is compiled before. Returns what was done, by model.

    seed, steps, slat_steps: as of `Pipeline.steps`. Channels are found on layers that keep none apart: equal arguments come to
    equal artifacts, calibrated before or not. Each model is written whole or not at all, while others read; two processes that
    calibrate take turns in writing, and the last one counts.

    Raises ValueError for no objects, another precision, a pipeline without integer layers, as on CPUs that gain nothing by
    them, a model that another process compiled anew meanwhile, and as `compile_artifacts` and `Pipeline.steps`.
    """
    if precision not in QUANTIZED:
        raise ValueError(f"precision: expected one of {', '.join(QUANTIZED)}, given {precision!r}")
    if not objects:
        raise ValueError("objects: expected at least one photo with a mask, given none")
    artifacts = compile_artifacts(source, folder, precision, on_model=on_model)
    names = artifacts.integers
    if not names:
        reason = "no layer of these models does" if gains(precision) else "all are in floats"
        raise ValueError(f"precision: expected one by which layers gain on this CPU, given {precision!r}: {reason}")
    watched = _Watched(artifacts.folder, source)
    pipeline = Pipeline(watched)
    formats = [next(name for name, kind in FORMATS.items() if kind.models == (model,)) for model in _decoders(artifacts)]
    for number, (image, mask) in enumerate(objects, 1):
        tell = on_progress if len(objects) == 1 else of_object(on_progress, number)
        options = {"seed": seed, "steps": steps, "slat_steps": slat_steps, "formats": formats}
        pipeline.generate(image, mask, on_progress=tell, **options)
    found = {}
    with locked(artifacts.folder / LOCK, lambda: say_waiting(artifacts.folder)):
        for name in names:
            key = {part: artifacts.keys[name][part] for part in KEY}
            if key_of(made_from(artifacts.folder / name)) != key:
                raise ValueError(f"artifacts {str(artifacts.folder)!r}: {name} was compiled anew meanwhile: calibrate again")
            plain = Component.load(artifacts.folder / name)  # which another process may have calibrated meanwhile
            component = with_channels(plain, watched.largest[name], source.state(name))
            save_model(component, artifacts.folder, name, key)
            layers = [spec for spec in component.manifest.packed if spec.is_quantized]
            found[name] = Calibrated(sum(bool(spec.apart) for spec in layers), len(layers))
    return found


class _Watched(Artifacts):
    """Artifacts whose models note the largest inputs of their integer layers: `largest`, by model."""

    def __init__(self, folder: Path, source: Source):
        super().__init__(folder)
        self._source = source
        self.largest = {name: Largest() for name in self.config.models}

    def load(self, name: str) -> Component:
        component = super().load(name)
        if CALIBRATION in self.keys[name]:
            component = uncalibrated(component, self._source.state(name))
            watch(component, self.largest[name])
        return component


def _decoders(artifacts: Artifacts) -> list[str]:
    return [name for name in artifacts.config.models if name in DECODED and MODELS[name].integers]
