"""`RecognizeRmsNormHeads`: what torch's `normalize` comes as, and what looks like it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import nn
from tvm import relax

from sparse_ops.build import build
from sparse_ops.transform import SimplifyLayout
from sparse_ops.transform.rms_norm_heads import RecognizeRmsNormHeads
from tests.sparse_ops.transform.graphs import ops
from tests.sparse_ops.transform.torch_models import imported
from tests.tolerance import assert_close
from tir_kernels.spec import rms_norm_heads

HEADS, DEPTH = 3, 12


class HeadNorm(nn.Module):
    def __init__(self, factor: float = DEPTH**0.5, axis: int = -1, eps: float = 1e-12, gamma: tuple = (HEADS, DEPTH)):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(gamma))
        self.factor, self.axis, self.eps = factor, axis, eps

    def forward(self, x):
        return F.normalize(x, dim=self.axis, eps=self.eps) * self.gamma * self.factor


class WrittenOut(HeadNorm):
    def forward(self, x):
        length = (x * x).sum(-1, keepdim=True).sqrt()
        return self.factor * (self.gamma[None] * (x / length.clamp_min(1e-12)))


def recognized(model: nn.Module, dynamic=None) -> tvm.IRModule:
    return RecognizeRmsNormHeads()(SimplifyLayout()(imported(model, (torch.zeros(2, 5, HEADS, DEPTH),), dynamic)))


@pytest.mark.parametrize("model", [HeadNorm(), WrittenOut()], ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("dynamic", [None, (("batch", "tokens", None, None),)], ids=["static", "symbolic"])
def test_recognized(model, dynamic):
    assert set(ops(recognized(model, dynamic))) == {"reshape", "sparse_ops.rms_norm_heads"}


def test_same_numbers():
    model, x = HeadNorm(), np.random.default_rng(0).standard_normal((2, 5, HEADS, DEPTH), dtype=np.float32)
    x[0, 1, 2] = 0
    vm = relax.VirtualMachine(build(recognized(model)), tvm.cpu())
    expected = rms_norm_heads.naive(x.reshape(-1, HEADS, DEPTH), model.gamma.detach().numpy())
    assert_close(vm["main"](tvm.runtime.tensor(x)).numpy(), expected.reshape(x.shape), depth=DEPTH, dtype="float32")


@pytest.mark.parametrize(
    "options", [{"factor": 1.5}, {"axis": -2}, {"eps": 1e-6}, {"gamma": (DEPTH,)}, {"gamma": (5, HEADS, DEPTH)}], ids=str
)
def test_what_is_no_such_norm_stays(options):
    assert "sparse_ops.rms_norm_heads" not in ops(recognized(HeadNorm(**options)))
