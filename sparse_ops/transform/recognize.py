"""Which passes find what our ops compute in a module, in their order: the same for every kind of target."""

import tvm
from tvm import relax

from .activation import RecognizeActivation
from .attention import RecognizeAttention
from .batch_norm import FoldBatchNorm, RecognizeBatchNorm
from .channel_layer_norm import RecognizeChannelLayerNorm
from .conv import RecognizeConv, RecognizeConvTranspose
from .group_norm import RecognizeGroupNorm
from .layer_norm import RecognizeLayerNorm
from .layout import SimplifyLayout
from .linear import RecognizeLinear
from .rms_norm_heads import RecognizeRmsNormHeads
from .softmax import RecognizeSoftmax
from .split_linear import SplitLinear


def recognize() -> tvm.transform.Pass:
    """Calls of ops of ours in place of all that they compute."""
    return tvm.transform.Sequential(
        [
            SimplifyLayout(),
            RecognizeActivation(),
            RecognizeRmsNormHeads(),
            RecognizeAttention(),
            RecognizeLinear(),
            RecognizeChannelLayerNorm(),
            RecognizeLayerNorm(),
            RecognizeConv(),
            RecognizeConvTranspose(),
            RecognizeBatchNorm(),
            FoldBatchNorm(),
            RecognizeGroupNorm(),
            RecognizeSoftmax(),
            SimplifyLayout(),
            SplitLinear(),
            RecognizeLinear(),  # what follows one part of a split layer
            relax.transform.EliminateCommonSubexpr(),
        ]
    )
