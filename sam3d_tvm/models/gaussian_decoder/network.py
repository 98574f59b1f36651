"""The Gaussian decoder: from the latents of voxels to the raw features of their Gaussians.

    forward(feats float32 [n, latent_channels], coords int32 [n, 4]) -> float32 [n, out_channels]

`sam3d_tvm.splat.gaussians` makes Gaussians of the features.
"""

from tvm.relax.frontend.nn import spec

from sam3d_tvm.models.gaussian_decoder.config import GaussianDecoderConfig
from sam3d_tvm.models.slat_decoder import SlatTransformer
from sam3d_tvm.models.sparse_blocks import Record, ignore
from sparse_ops.nn import LayerNorm, Linear, SymbolicSparseTensor, Tensor

FINAL_NORM_EPS = 1e-5


class GaussianModel(SlatTransformer):
    """The model. Its parameters have the names of the upstream checkpoint, whose `offset_perturbation` is none of them."""

    def __init__(self, config: GaussianDecoderConfig):
        super().__init__(config)
        self.final_norm = LayerNorm(config.model_channels, affine=False, eps=FINAL_NORM_EPS)
        self.out_layer = Linear(config.model_channels, config.out_channels)

    def forward(self, feats: Tensor, coords: Tensor, record: Record = ignore) -> Tensor:
        """feats [N, latent_channels], coords int32 [N, 4] -> [N, out_channels]."""
        h = self.final_norm(self.transform(SymbolicSparseTensor.of(feats, coords), record))
        record("before_out_layer", h.feats)
        return self.out_layer(h).feats

    def specs(self) -> dict[str, spec.MethodSpec]:
        """The function with the types of its arguments, as `export_tvm` takes it."""
        types = [spec.Tensor(["n", self.config.latent_channels], "float32"), spec.Tensor(["n", 4], "int32")]
        return {"forward": spec.MethodSpec(self.forward, ["feats", "coords"], types, "plain", "none")}
