"""The dispatch table: the first that accepts, reasons where none does, a new row; and layouts, packed and unpacked."""

from dataclasses import dataclass, replace
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest
import tvm

from sparse_ops.eager import functional as F
from sparse_ops.testing.examples import features, voxels
from tir_kernels import dispatch
from tir_kernels.cpu.isa import AVX2, AVX512, AVX512_BF16, PORTABLE, forced_isa, host_target
from tir_kernels.dispatch import KERNELS, PAIRS, Implementation, Kernel, check_target, fingerprint, kernel_for, map_layout
from tir_kernels.layout import MapLayout
from tir_kernels.spec import Spec
from tir_kernels.spec.attention import Attention
from tir_kernels.spec.conv3d import Conv3d
from tir_kernels.spec.conv_transpose3d import ConvTranspose3d
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import InverseMap, ProbeMap, SubmanifoldMap, naive_table
from tir_kernels.spec.linear import Linear
from tir_kernels.spec.pool import Pool, Reduction
from tir_kernels.spec.sparse_conv import SparseConv
from tir_kernels.spec.upsampled_conv import AddTaps

CUDA = tvm.target.Target({"kind": "cuda", "arch": "sm_90", "host": {"kind": "llvm"}})
OTHER = tvm.target.Target({"kind": "vulkan", "host": {"kind": "llvm"}})
SAME = Geometry((3, 3, 3), padding=(1, 1, 1))
FLAT = Geometry((1, 3, 3), padding=(0, 1, 1))
EMULATED = replace(AVX512_BF16, emulate_dot=True)
ISAS = [PORTABLE, AVX2, AVX512, EMULATED]


def specs(kind=Spec):
    """Every class of descriptions."""
    return [leaf for sub in kind.__subclasses__() for leaf in (specs(sub) or [sub])]


def test_every_description_has_a_row():
    ours = [spec for spec in specs() if spec.__module__.startswith("tir_kernels.")]
    assert sorted(spec.family for spec in ours) == sorted(KERNELS)


@pytest.mark.parametrize(
    ("spec", "isa", "name"),
    [
        (Conv3d(32, 32, SAME), AVX2, "winograd"),
        (Conv3d(32, 32, SAME, (1, 4, 4)), AVX2, "conv3d"),  # too few voxels to pay
        (Conv3d(32, 32, FLAT, (1, 37, 37)), AVX2, "winograd"),
        (Conv3d(32, 32, FLAT, (1, 15, 16)), AVX2, "conv3d"),  # too few pixels
        (Conv3d(32, 32, Geometry((3, 1, 3), padding=(1, 0, 1))), AVX2, "conv3d"),
        (Conv3d(32, 32, SAME, dtype="bfloat16"), AVX2, "conv3d"),
        (Conv3d(32, 32, SAME, dtype="bfloat16"), EMULATED, "conv3d_dot"),
        (Conv3d(32, 32, Geometry((3, 3, 3), (2, 2, 2))), AVX2, "conv3d"),
        (SparseConv(8, 8, (3, 3, 3)), EMULATED, "gather_gemm"),
        (SparseConv(8, 8, (3, 3, 3), "bfloat16"), EMULATED, "gather_gemm_dot"),
        (SparseConv(64, 64, (3, 3, 3), groups=64), AVX2, "depthwise_conv"),
        (SparseConv(64, 192, (3, 3, 3), "bfloat16", groups=64), EMULATED, "depthwise_conv"),
        (SparseConv(64, 64, (3, 3, 3), groups=16), AVX2, "depthwise_conv"),  # two groups to a vector
        (SparseConv(64, 64, (3, 3, 3), groups=8), AVX2, "gather_gemm"),  # a vector each
        (SparseConv(64, 64, (3, 3, 3), groups=8), AVX512, "depthwise_conv"),
        (SparseConv(63, 63, (3, 3, 3), groups=21), AVX2, "gather_gemm"),  # three divides no vector
        (SparseConv(2, 64, (3, 3, 3), "bfloat16", groups=2), EMULATED, "gather_gemm_dot"),
        (Linear(8, 8, "bfloat16"), AVX512, "linear"),
        (Linear(8, 8, "bfloat16"), EMULATED, "linear_dot"),
        (Attention(2, 8, "bfloat16"), EMULATED, "attention_dot"),
        (Attention(2, 8), EMULATED, "attention"),
    ],
)
def test_best_first(spec, isa, name):
    with forced_isa(isa):
        assert kernel_for(spec, host_target()).name == name


def test_what_a_choice_does_not_use_is_no_part_of_the_kernel():
    with forced_isa(AVX2):
        sizes = [kernel_for(Conv3d(32, 32, SAME, size)).function for size in ((None, None, None), (9, 9, 64))]
        widths = [kernel_for(Linear(cin, cout)).function for cin, cout in ((3, 48), (700, 1024))]
        kernels = [kernel_for(SparseConv(8, 8, kernel)).function for kernel in ((3, 3, 3), (1, 1, 2))]
    for first, second in (sizes, widths, kernels):
        assert first is second


def test_none_accepts():
    with pytest.raises(ValueError, match="conv3d: no kernel for Conv3d") as error:
        kernel_for(Conv3d(32, 32, SAME), OTHER)
    for name in ("winograd", "conv3d_dot", "conv3d"):
        assert f"{name}: expected a CPU target of kind 'llvm', given kind 'vulkan'" in str(error.value)
    expected = "a CPU target of kind 'llvm' or a CUDA target of kind 'cuda', given kind 'vulkan'"
    with pytest.raises(ValueError, match=f"target: expected {expected}"):
        fingerprint(OTHER)
    with pytest.raises(ValueError, match=r"target: expected a compute capability of at least 8\.0, given 7\.5"):
        check_target(tvm.target.Target({"kind": "cuda", "arch": "sm_75"}))


def test_a_refusal_tells_why():
    accepts = KERNELS["conv3d"][0].accepts
    with forced_isa(AVX2):
        target = host_target()
        assert "expected float32, given bfloat16" in accepts(Conv3d(32, 32, SAME, dtype="bfloat16"), target)
        assert "kernel of 3^3" in accepts(Conv3d(32, 32, Geometry((1, 1, 1))), target)
        assert "does not pay for 3 -> 32 channels" in accepts(Conv3d(3, 32, SAME), target)
        dot = next(row for row in KERNELS["linear"] if row.name == "linear_dot")
        assert "pairs of bfloat16, which avx2 has not" in dot.accepts(Linear(8, 8, "bfloat16"), target)


def test_an_implementation_joins_as_one_row(monkeypatch):
    """For another kind of target, with a layout of maps of its own."""

    class Table(MapLayout):
        NAMES = ("table", "masks", "order", "rows")

        def arrays(self, taps, rows):
            raise NotImplementedError

        def unpack(self, table, masks, order, rows):
            return table

        def pairs(self, table, masks, order, rows):
            return int((table >= 0).sum())

        def problem(self, *arrays):
            return ""

    made = Kernel("implicit_gemm", None, map=Table())
    row = Implementation("implicit_gemm", lambda spec, target: None if target.kind.name == "cuda" else "no", lambda *_: made)
    for family in ("sparse_conv", "inverse_map"):
        monkeypatch.setitem(KERNELS, family, (row, *KERNELS[family]))
    assert kernel_for(SparseConv(8, 8, (3, 3, 3)), CUDA) is made
    assert isinstance(map_layout(CUDA), Table)
    assert kernel_for(SparseConv(8, 8, (3, 3, 3)), host_target()).name.startswith("gather_gemm")
    with CUDA:  # the scope is the target where none is given
        assert kernel_for(SparseConv(8, 8, (3, 3, 3))) is made


def test_a_family_joins_as_one_row(monkeypatch):
    @dataclass(frozen=True)
    class Nothing(Spec):
        family: ClassVar[str] = "nothing"

    monkeypatch.setitem(KERNELS, "nothing", (Implementation("nothing", lambda *_: None, lambda *_: Kernel("nothing", None)),))
    assert kernel_for(Nothing()).name == "nothing"


def test_fingerprints():
    """Equal where the same kernels are made: forcing what a target has anyway changes nothing."""
    target, seen = host_target(), set()
    for isa in (*ISAS, AVX512_BF16):
        with forced_isa(isa):
            seen.add(fingerprint(target))
    assert len(seen) == 5
    assert fingerprint(target) == fingerprint()


def test_one_layout_of_maps_serves_all_that_reads_or_writes_them():
    readers = [
        SubmanifoldMap(SAME),
        ProbeMap(SAME),
        InverseMap(),
        SparseConv(8, 16, (3, 3, 3)),
        SparseConv(8, 16, (1, 1, 1), "bfloat16"),
        AddTaps(8, 27, range(3)),
        Pool(8, Reduction("max")),
    ]
    assert {kernel_for(spec).map for spec in readers} == {map_layout()} == {PAIRS}
    assert kernel_for(Linear(8, 8)).map is None
    assert {family for family, rows in KERNELS.items() if any(row.name in ("pool", "add_taps") for row in rows)}


@pytest.mark.parametrize("rows", [0, 1, 97, 5000])
def test_a_map_unpacks_to_the_neighbour_table(rows):
    coords = voxels(np.random.default_rng(0), rows)
    kernel_map = F.submanifold_map(coords, (1, 3, 5))
    arrays = [array.numpy() for array in kernel_map.arrays]
    told = PAIRS.arrays(15, rows)
    assert [(array.shape, str(array.dtype)) for array in arrays] == [(one.shape, one.dtype) for one in told]
    assert [(len(one.shape), one.dtype) for one in told] == [(2, "int32")] * 3 + [(1, "int64")]  # see `MapLayout`
    np.testing.assert_array_equal(PAIRS.unpack(*arrays), naive_table(coords, coords, Geometry.submanifold((1, 3, 5))))


WEIGHTS = [
    (SparseConv(5, 3, (1, 2, 3)), (3, 1, 2, 3, 5)),
    (SparseConv(33, 70, (3, 1, 1)), (70, 3, 1, 1, 33)),
    (SparseConv(21, 35, (3, 1, 2), groups=7), (35, 3, 1, 2, 3)),
    (SparseConv(330, 210, (1, 1, 2), groups=3), (210, 1, 1, 2, 110)),
    (SparseConv(70, 70, (3, 1, 1), groups=70), (70, 3, 1, 1, 1)),
    (SparseConv(5, 5 * 19, (3, 1, 1), groups=5), (95, 3, 1, 1, 1)),
    (SparseConv(44, 88, (1, 3, 1), groups=22), (88, 1, 3, 1, 2)),
    (SparseConv(1000, 1000, (1, 1, 1), groups=1000), (1000, 1, 1, 1, 1)),
    (Linear(433, 70), (70, 433)),
    (Linear(0, 7), (7, 0)),
    (Conv3d(3, 5, Geometry((3, 2, 1))), (5, 3, 3, 2, 1)),
    (Conv3d(70, 33, Geometry((3, 3, 3), (2, 1, 1))), (33, 70, 3, 3, 3)),
    (Conv3d(0, 3, Geometry((1, 1, 1))), (3, 0, 1, 1, 1)),
    (Conv3d(17, 20, SAME), (20, 17, 3, 3, 3)),
    (Conv3d(100, 16, SAME), (16, 100, 3, 3, 3)),
    (ConvTranspose3d(70, 33, Geometry((1, 2, 2), (1, 2, 2), transposed=True)), (70, 33, 1, 2, 2)),
    (ConvTranspose3d(7, 5, Geometry((2, 3, 4), (1, 2, 3), dilation=(2, 1, 2), transposed=True)), (7, 5, 2, 3, 4)),
    (ConvTranspose3d(0, 3, Geometry((1, 1, 2), (1, 2, 2), transposed=True)), (0, 3, 1, 1, 2)),
]


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name + "_emulated" * isa.emulate_dot)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("spec", "shape"), WEIGHTS, ids=lambda value: str(value) if isinstance(value, tuple) else value.family)
def test_a_weight_packs_and_unpacks(spec, shape, dtype, isa):
    with forced_isa(isa):
        layout = kernel_for(replace(spec, dtype=dtype)).weight
    weight = features(np.random.default_rng(0), *shape, dtype=dtype)
    packed = tvm.runtime.empty(layout.shape, layout.dtype)
    tvm.compile(tvm.IRModule({"main": layout.pack}), target=host_target())["main"](tvm.runtime.tensor(weight), packed)
    np.testing.assert_array_equal(layout.unpack(packed.numpy()), weight.astype("float32"))
    assert packed.numpy().dtype in (np.float32, np.int32, ml_dtypes.bfloat16)


def test_the_target_is_the_scope_or_the_host():
    assert str(dispatch.current_target()) == str(host_target())
    with CUDA:
        assert dispatch.current_target() == CUDA
        assert dispatch.current_target(host_target()).kind.name == "llvm"
