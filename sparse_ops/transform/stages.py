"""What the pipelines of all kinds of targets have in common: the passes before kernels are scheduled, and those that end it."""

import tvm
from tvm import relax

from .check_sizes import CheckSizes
from .fold_constants import FoldConstants
from .keep import KeepKernels
from .recognize import recognize
from .reshape import legalize_reshape
from .share import ShareCalls
from .sizes_first import SizesFirst
from .take import BoundTakes

Passes = list[tvm.transform.Pass]


def to_kernels(narrow: tvm.transform.Pass, lift: Passes) -> Passes:
    """Up to calls of kernels, of which those that are not hand-written have no schedule yet.

    `narrow`: what `to_precision` returned. `lift`: what moves the packing of parameters out, if it is to be moved.
    """
    return [
        recognize(),
        narrow,
        BoundTakes(),
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        relax.transform.LegalizeOps({"relax.reshape": legalize_reshape}),
        ShareCalls(),
        FoldConstants(),
        *lift,
        KeepKernels(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        SizesFirst(),
        relax.transform.RewriteDataflowReshape(),
    ]


def to_virtual_machine(before_calls: Passes) -> Passes:
    """From scheduled kernels to what the virtual machine runs. `before_calls`: run where no dataflow is left and kernels still
    are functions of their inputs."""
    return [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        *before_calls,
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        CheckSizes(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
