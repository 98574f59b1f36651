"""The sparse networks of the pipeline in torch, for training: parameters by the names and in the shapes of the checkpoints."""

from training.networks.gaussian_decoder import GaussianDecoderNetwork
from training.networks.mesh_decoder import MeshDecoderNetwork
from training.networks.slat_generator import SlatGeneratorNetwork

__all__ = ["GaussianDecoderNetwork", "MeshDecoderNetwork", "SlatGeneratorNetwork"]
