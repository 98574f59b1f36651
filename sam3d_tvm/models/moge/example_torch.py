"""What `validate` compares of the depth model: its network on a random photo, whose patches are no square."""

import numpy as np
import torch

from sam3d_tvm.models.dinov2 import position_matrices
from sam3d_tvm.models.example_torch import Example
from sam3d_tvm.models.moge.config import PRESETS
from sam3d_tvm.models.moge.network_torch import MoGeModel
from sam3d_tvm.models.moge.random_weights import seeded_state
from sam3d_tvm.models.moge.run import sizes_of, view
from sparse_ops.deploy.component import Component

PHOTO = {"tiny": (96, 128), "full": (768, 1024)}  # height and width


def example(size: str) -> Example:
    """The network of a preset; of sizes that are any, those of a photo of `PHOTO`."""
    config = PRESETS[size]
    with torch.device("meta"):
        module = MoGeModel(config)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    state = {name: torch.from_numpy(np.array(value)) for name, value in seeded_state(config, shapes, 0).items()}
    module.load_state_dict(state, assign=True)
    module = module.requires_grad_(False).eval()

    patch = config.encoder.patch_size
    sizes = sizes_of(*PHOTO[size], config.num_tokens_range[1], patch)
    image = np.random.default_rng(0).random((3, sizes.rows, patch, sizes.columns, patch), np.float32)
    matrices = position_matrices(config.encoder, sizes.rows, sizes.columns)
    given = (image, *matrices, *view(sizes.height, sizes.width))
    tensors = tuple(map(torch.from_numpy, given))

    def run(component: Component):
        forward = component["forward"]
        return lambda: forward(*given)

    options = {"dynamic": module.dynamic(), "products_only": True}
    return Example(module, {"forward": tensors}, lambda: module(*tensors), run, **options)
