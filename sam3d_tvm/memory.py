"""How much memory each stage of a pipeline takes: weights, which are known, and what grows with tokens and voxels.

What a stage keeps is counted from its sizes: keys and values of the condition, features of all rows. How many features of a row
there are at a time was measured at the sizes of SAM-3D-Objects with 19,072 voxels; estimates are at most a third above that.
"""

from collections.abc import Mapping

from sam3d_tvm.config import PipelineConfig

TYPICAL_VOXELS = 16_000  # of an object at 64^3
BASE = 640 << 20  # bytes of Python, TVM and numpy with a photo of a few megapixels
FLOAT = 4
WIDE = 12  # rows of `model_channels` that a transformer block holds at a time, feed-forward layer and copies included
CHILDREN = 64  # cells of the mesh to a voxel
CELL = 1.8  # times the features of a cell: those of two layers, and what the extraction takes
GAUSSIAN = 18  # times the features of a Gaussian, of which many copies are in float64
PIXEL = 2  # times the features of a pixel of a point map


def estimate(config: PipelineConfig, weights: Mapping[str, int], voxels: int, stage1_only: bool = False) -> dict[str, int]:
    """Bytes that each stage takes at its peak, by the name of its model. `weights`: bytes of each model."""
    rest = {}
    for name in ("ss_condition_embedder", "slat_condition_embedder"):
        embedder = getattr(config, name)
        tokens = max(part.model.tokens for part in embedder.embedders)
        points = [part.model for part in embedder.embedders if part.kind == "pointmap"]
        rest[name] = embedder.tokens * embedder.channels + WIDE * tokens * embedder.channels
        rest[name] += sum(PIXEL * model.input_size**2 * model.embed_dim for model in points)
    flow = config.ss_generator
    shape = flow.latent_mapping["shape"].token_len
    context = 2 * flow.num_blocks * config.ss_condition_embedder.tokens * flow.model_channels
    rest["ss_generator"] = context + WIDE * shape * flow.model_channels
    decoder = config.ss_decoder
    rest["ss_decoder"] = 6 * decoder.grid**3 * decoder.channels[-1]
    slat = config.slat_generator
    context = 2 * slat.num_blocks * config.slat_condition_embedder.tokens * slat.model_channels
    rest["slat_generator"] = context + WIDE * voxels * slat.model_channels
    for name in ("slat_decoder_gs", "slat_decoder_gs_4"):
        if (gaussian := getattr(config, name)) is not None:
            rest[name] = voxels * (WIDE * gaussian.model_channels + GAUSSIAN * gaussian.out_channels)
    if (mesh := config.slat_decoder_mesh) is not None:
        fine = CHILDREN * voxels * (mesh.out_channels + 2 * mesh.widths[-1])
        rest["slat_decoder_mesh"] = int(CELL * fine) + WIDE * voxels * mesh.model_channels
    stages = [name for name in rest if not (stage1_only and name.startswith("slat"))]
    return {name: BASE + weights.get(name, 0) + FLOAT * rest[name] for name in stages}
