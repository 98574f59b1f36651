"""The structure decoder in a published checkpoint, which does not say how large its input is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sam3d_tvm.models.structure_decoder.config import StructureDecoderConfig
from sam3d_tvm.models.structure_flow.config import SHAPE
from sam3d_tvm.models.upstream import TDFY, pick


@dataclass(frozen=True)
class SizesWithoutResolution:
    """The decoder's own values; the resolution of its input is that of the generator's shape."""

    values: Mapping[str, Any]


def _structure_decoder(values: Mapping[str, Any]) -> SizesWithoutResolution:
    taken = ("latent_channels", "channels", "num_res_blocks", "num_res_blocks_middle")
    only = {"out_channels": 1, "norm_type": "layer", "reshape_input_to_cube": False}
    return SizesWithoutResolution(pick(values, taken, only, ("use_fp16", "pretrained_ckpt_path")))


def complete(read: SizesWithoutResolution, models: Mapping[str, Any]) -> StructureDecoderConfig:
    """The config of a decoder, of what was read of it and of the generator before it."""
    tokens = models["ss_generator"].latent_mapping[SHAPE].token_len
    resolution = round(tokens ** (1 / 3))
    if resolution**3 != tokens:
        raise ValueError(f"ss_generator: expected a cube of tokens for the latent {SHAPE!r}, given {tokens}")
    return StructureDecoderConfig(resolution, **read.values)


TARGETS = {TDFY + "sparse_structure_vae.SparseStructureDecoderTdfyWrapper": _structure_decoder}
