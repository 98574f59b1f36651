"""Training of the structure decoder: occupancy of voxels from the latent in closed form, with noise as a generator's errors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam3d_tvm.models.structure_decoder.config import StructureDecoderConfig
from sam3d_tvm.models.structure_decoder.network_torch import ResBlock, StructureDecoderModel
from training.dataset import Dataset
from training.loop import Randomness, Rates, train
from training.structure_generator import intersection_over_union

NAME = "structure_decoder"
BATCH = 4
MOST_NOISE = 0.35
CHECKED = 16  # held-out objects


def train_structure_decoder(
    config: StructureDecoderConfig, data: Dataset, held_out: Dataset, folder: Path, steps: int, tell: Callable[[str], None]
) -> None:
    """Write the weights of a `StructureDecoderModel`."""
    torch.manual_seed(4)
    net = StructureDecoderModel(config)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, ResBlock):
                module.conv2.weight.mul_(0.1)
        net.out_layer[2].bias.fill_(-1)

    def step(random: Randomness, _: float) -> dict[str, Tensor]:
        rows = random.numpy.integers(0, len(data), BATCH)
        latents = torch.from_numpy(data.arrays["latent"][rows, 0].astype(np.float32))
        size = torch.rand(BATCH, 1, 1, generator=random.torch) * MOST_NOISE
        logits = net(latents + size * torch.randn(latents.shape, generator=random.torch))
        loss = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(data.occupied(rows)[:, None]).float())
        loss.backward()
        return {"cross entropy": loss.detach()}

    rows = np.arange(min(CHECKED, len(held_out)))
    truth = held_out.occupied(rows)

    def check(average: StructureDecoderModel) -> str:
        found = []
        for noise in (0.0, 0.3):
            latents = torch.from_numpy(held_out.arrays["latent"][rows, 0].astype(np.float32))
            latents = latents + noise * torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
            occupied = np.concatenate([(average(part) > 0)[:, 0].numpy() for part in latents.split(BATCH)])
            found.append(intersection_over_union(occupied, truth).mean())
        return f"overlap of {len(rows)} held-out objects {found[0]:.3f}, with noise of 0.3 {found[1]:.3f}"

    train(NAME, folder, net, steps, step, tell, seed=13, rates=Rates(rest=3e-3, level=0.1), check=check, check_every=400)
