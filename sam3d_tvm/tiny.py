"""The small model that comes with the package, trained: its sizes, and its weights as a source of artifacts.

It is the architecture of SAM-3D-Objects throughout, in some hundredths of its width, trained on made-up tableware by the
package `training` of the project's repository. Weights lie in `data/tiny`, a file a model: the parameters by upstream's names,
in float16; what is computed with is float32.
"""

import hashlib
import os
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from sam3d_tvm.artifacts import target_suffix
from sam3d_tvm.checkpoint import with_finite
from sam3d_tvm.config import PipelineConfig, Preprocessing, Sampling
from sam3d_tvm.models import MODELS, gaussian_decoder, mesh_decoder
from sam3d_tvm.models.condition_embedder.config import DinoConfig, PointPatchConfig, fuser_config
from sam3d_tvm.models.slat_generator.config import SlatConfig
from sam3d_tvm.models.structure_decoder.config import StructureDecoderConfig
from sam3d_tvm.models.structure_flow.config import POSE, SHAPE, Latent, StructureFlowConfig
from sparse_ops.deploy.files import save_safetensors
from sparse_ops.deploy.weights import LazyArray, State, check_arrays, load_state

NAME = "tiny"  # of the preset
STORED = np.dtype(np.float16)

_SIZE = 112  # pixels along each side of an image
_DINO = DinoConfig(embed_dim=64, depth=3, num_heads=4, input_size=_SIZE, img_size=_SIZE, mlp_ratio=2)
TINY = PipelineConfig(
    ss_condition_embedder=fuser_config(_DINO, PointPatchConfig(embed_dim=16, input_size=32), whole=False),
    ss_generator=StructureFlowConfig(
        96, 64, num_blocks=5, num_heads=3, mlp_ratio=3, latent_mapping={SHAPE: Latent(48, 4**3)} | POSE
    ),
    ss_decoder=StructureDecoderConfig(4, 48, channels=(32, 24, 16, 8, 4), num_res_blocks=1, num_res_blocks_middle=1),
    slat_condition_embedder=fuser_config(replace(_DINO, prenorm_features=True), whole=False),
    slat_generator=SlatConfig(
        64, 8, 64, 64, 8, num_blocks=3, num_heads=2, mlp_ratio=3, patch_size=4, io_block_channels=(16, 32), qk_rms_norm=True
    ),
    slat_decoder_gs=replace(gaussian_decoder.PRESETS["tiny"], model_channels=32, num_blocks=2, num_heads=2, mlp_ratio=2),
    slat_decoder_mesh=replace(mesh_decoder.PRESETS["tiny"], num_blocks=1),
    ss_sampling=Sampling(25, 3.0, 2.0),
    slat_sampling=Sampling(25, 0.0, 1.0),
    preprocessing=Preprocessing(size=_SIZE, structure_sees_crop=True),
    slat_mean=(0.0,) * 8,
    slat_std=(1.0,) * 8,
)


def shipped() -> Path:
    """The folder of the weights that come with the package."""
    return Path(str(resources.files("sam3d_tvm") / "data" / "tiny"))


class TinySource:
    """The weights of `TINY` in a folder, by default those that come with the package; read when they are asked for.

    Raises ValueError then for a file that is missing or damaged, parameters that are missing, not known or misshapen, and
    values that are not finite, with the name of the file.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self.config, self.folder, self._own = TINY, Path(folder or shipped()), folder is None

    def to_json(self) -> dict[str, Any]:
        """What `presets.source_from_json` makes the same source of."""
        return {"name": NAME, "folder": None if self._own else str(self.folder)}

    def file(self, name: str) -> Path:
        """Where the weights of model `name` are."""
        return file_of(self.folder, name)

    def state(self, name: str) -> State:
        file = self._present(name)
        try:
            state = load_state(file)
            check_arrays(MODELS[name].shapes(getattr(self.config, name)), state)
        except ValueError as error:
            raise ValueError(f"weights {str(file)!r}: {error}") from error
        return {key: _as_float32(value) for key, value in with_finite(state, file).items()}

    def offset_perturbation(self, name: str) -> np.ndarray:
        return MODELS[name].offset_perturbation(getattr(self.config, name))

    def identity(self, name: str) -> str:
        return hashlib.sha256(self._present(name).read_bytes()).hexdigest()

    def label(self, precision: str, target: tvm.target.Target | None = None) -> str:
        """Of other weights than those of the package, by their folder, too."""
        place = hashlib.sha256(os.fsencode(self.folder.resolve())).hexdigest()[:12]
        return f"preset-{NAME}-{'' if self._own else place + '-'}{precision}{target_suffix(target)}"

    def _present(self, name: str) -> Path:
        file = self.file(name)
        if not file.is_file():
            raise ValueError(f"weights: expected {file.name} of the preset {NAME!r} in {str(self.folder)!r}, given none")
        return file


def file_of(folder: Path, name: str) -> Path:
    """The file of model `name` in a folder of weights."""
    return folder / f"{name}.safetensors"


def save_weights(folder: str | os.PathLike, name: str, state: State) -> Path:
    """Writes the parameters of model `name` as `TinySource` reads them, in float16. Equal ones give equal bytes.

    state: float arrays by upstream's names. ValueError for parameters that are missing, not known or misshapen, and for values
    that float16 does not hold.
    """
    check_arrays(MODELS[name].shapes(getattr(TINY, name)), state)
    arrays = {}
    for key in sorted(state):
        with np.errstate(over="ignore"):  # is refused below
            arrays[key] = np.asarray(state[key]).astype(STORED)
        if not np.isfinite(arrays[key]).all():
            raise ValueError(f"{name}: expected weights that are finite in float16, given {key} with others")
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_safetensors(file_of(Path(folder), name), arrays)
    return file_of(Path(folder), name)


def _as_float32(value: LazyArray) -> LazyArray:
    return LazyArray(value.shape, np.float32, lambda: np.asarray(value, np.float32))
