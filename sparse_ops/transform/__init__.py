"""Passes that let any Relax module use our kernels on a CPU; `cpu_pipeline` is all of them, for `tvm.compile`."""

from .activation import RecognizeActivation
from .attention import RecognizeAttention
from .batch_norm import FoldBatchNorm, RecognizeBatchNorm
from .channel_layer_norm import RecognizeChannelLayerNorm
from .conv import RecognizeConv, RecognizeConvTranspose
from .cpu.pipeline import cpu_pipeline
from .cpu.schedule_rest import ScheduleRest
from .fold_constants import FoldConstants
from .group_norm import RecognizeGroupNorm
from .layer_norm import RecognizeLayerNorm
from .layout import SimplifyLayout
from .lift_params import LiftParams
from .linear import RecognizeLinear
from .pipelines import PIPELINES, packing_pipeline_for, pipeline_for
from .precision import to_precision
from .recognize import recognize
from .rms_norm_heads import RecognizeRmsNormHeads
from .softmax import RecognizeSoftmax
from .split_linear import SplitLinear
from .take import BoundTakes

__all__ = [
    "PIPELINES",
    "BoundTakes",
    "FoldBatchNorm",
    "FoldConstants",
    "LiftParams",
    "RecognizeActivation",
    "RecognizeAttention",
    "RecognizeBatchNorm",
    "RecognizeChannelLayerNorm",
    "RecognizeConv",
    "RecognizeConvTranspose",
    "RecognizeGroupNorm",
    "RecognizeLayerNorm",
    "RecognizeLinear",
    "RecognizeRmsNormHeads",
    "RecognizeSoftmax",
    "ScheduleRest",
    "SimplifyLayout",
    "SplitLinear",
    "cpu_pipeline",
    "packing_pipeline_for",
    "pipeline_for",
    "recognize",
    "to_precision",
]
