"""Golden layers for CUDA, on the emulated device, in every precision: those of few rows."""

import pytest

from tests import DATA
from tests.cuda_device import cuda_target, device
from tests.golden.case import precision
from tests.golden.runner import check_file

LAYERS = ("subm_conv3d", "windowed_attention", "sparse_resblock", "sparse_downsample_upsample", "prune_downsample")
NARROW = ("windowed_attention", "sparse_resblock")  # compiled as one module, which can be narrowed
CASES = [(name, "float32") for name in LAYERS] + [(name, narrow) for name in NARROW for narrow in ("float16", "bfloat16")]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_golden(case):
    name, narrow = case
    device()
    token = precision.set(narrow)
    try:
        with cuda_target():
            report = check_file(DATA / "golden" / f"{name}.safetensors")
    finally:
        precision.reset(token)
    assert report.ok, report.table()
