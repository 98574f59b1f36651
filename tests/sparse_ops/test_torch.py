"""Sparse convolution in torch, called back from a compiled module: against the oracle, memory it shares, what it refuses."""

import functools
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.frontend.nn import spec

torch = pytest.importorskip("torch")

from sparse_ops import nn  # noqa: E402
from sparse_ops.build import build  # noqa: E402
from sparse_ops.testing.examples import voxels  # noqa: E402
from sparse_ops.torch import callback as hybrid  # noqa: E402
from tests.tolerance import assert_close  # noqa: E402
from tir_kernels.spec import sparse_conv  # noqa: E402
from tir_kernels.spec.geometry import Geometry  # noqa: E402
from tir_kernels.spec.kernel_map import naive_table  # noqa: E402

CIN, COUT = 5, 7
NUMPY = {"float32": np.dtype("float32"), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype("float16")}


class Layers(nn.Module):
    """One layer with all options, one with none."""

    def __init__(self, dtype: str):
        self.full = hybrid.SubMConv3d(CIN, COUT, (3, 1, 5), dtype=dtype)
        self.bare = hybrid.SubMConv3d(CIN, COUT, 3, bias=False, dtype=dtype)

    def forward(self, feats: nn.Tensor, coords: nn.Tensor, residual: nn.Tensor):
        x = nn.SymbolicSparseTensor.of(feats, coords)
        return self.full(x, residual, activation="silu").feats, self.bare(x).feats


@functools.cache
def compiled(dtype: str):
    """(function, parameters by name, the same to pass)"""
    inputs = {
        "feats": spec.Tensor(["rows", CIN], dtype),
        "coords": spec.Tensor(["rows", 4], "int32"),
        "residual": spec.Tensor(["rows", COUT], dtype),
    }
    mod, params = Layers(dtype).export_tvm({"forward": inputs})
    vm = relax.VirtualMachine(build(mod), tvm.cpu())
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal([int(n) for n in p.shape]).astype(NUMPY[str(p.dtype)]) for name, p in params}
    return vm["forward"], values, list(map(tvm.runtime.tensor, values.values()))


def example(rows: int, dtype: str) -> list[np.ndarray]:
    """feats, coords, residual"""
    rng = np.random.default_rng(rows)
    coords = voxels(rng, rows)
    return [
        rng.standard_normal((rows, CIN)).astype(NUMPY[dtype]),
        coords,
        rng.standard_normal((rows, COUT)).astype(NUMPY[dtype]),
    ]


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("rows", [0, 1, 2, 97, 700])
def test_it_is_the_convolution(rows, dtype):
    function, values, params = compiled(dtype)
    arrays = example(rows, dtype)
    feats, coords, residual = arrays
    tensors = list(map(tvm.runtime.tensor, arrays))
    full, bare = (y.numpy() for y in function(*tensors, *params))
    for y, layer, options in ((full, "full", (values["full.bias"], residual, "silu")), (bare, "bare", ())):
        weight = values[f"{layer}.weight"]
        table = naive_table(coords, coords, Geometry.submanifold(weight.shape[1:4]))
        taps = weight.reshape(COUT, -1, CIN).transpose(1, 2, 0)
        expected = sparse_conv.naive(feats, taps, table, *options)
        # In a narrow type the product with each tap is rounded before float32 sums it.
        depth = len(table) * (CIN if dtype == "float32" else 1)
        assert y.dtype == NUMPY[dtype]
        assert_close(y, expected, depth, dtype=NUMPY[dtype], name=layer)
    again = function(*tensors, *params)
    assert [y.numpy().tobytes() for y in again] == [full.tobytes(), bare.tobytes()]


def test_memory_is_shared(monkeypatch):
    function, _, params = compiled("float32")
    tensors = list(map(tvm.runtime.tensor, example(50, "float32")))
    seen = []
    inner = hybrid.convolve

    def spy(*args):
        seen.append([tensor.data_ptr() for tensor in args])
        inner(*args)

    monkeypatch.setattr(hybrid, "convolve", spy)
    _, bare = function(*tensors, *params)
    pointer = lambda tensor: torch.from_dlpack(tensor).data_ptr()  # noqa: E731
    (full_weight, full_bias, bare_weight), (feats, _, residual) = (list(map(pointer, group)) for group in (params, tensors))
    full_call, bare_call = seen  # x, weight, bias, pair_in, pair_out, segment, out, residual
    assert full_call[:3] == [feats, full_weight, full_bias] and full_call[7] == residual
    assert bare_call[:2] == [feats, bare_weight] and bare_call[6] == pointer(bare)


def test_a_map_of_other_rows_is_refused():
    x, weight, bias, out = (np.zeros(shape, "float32") for shape in ((4, CIN), (COUT, 3, 3, 3, CIN), COUT, (4, COUT)))
    pairs, segment = np.zeros((1, 8), "int32"), np.zeros((1, 28), "int32")
    arrays = map(tvm.runtime.tensor, (x, weight, bias, pairs, pairs, segment, np.array([3, 4]), out))
    with pytest.raises(ValueError, match=r"kernel_map: expected one of 4 to 4 rows, given \[3, 4\]"):
        tvm.get_global_func(hybrid.CONVOLVE)(*arrays)


def test_without_torch_the_extra_is_named():
    script = "import sys; sys.modules['torch'] = None\nimport sparse_ops.torch"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "ImportError: sparse_ops.torch: needs torch, which the extra 'torch' installs" in done.stderr
