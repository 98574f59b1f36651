"""The checksum of an array on the emulated device: that of the host."""

import numpy as np
import pytest

from tests.cuda_emulator import same_bits
from tests.tir_kernels.cuda.on_device import run
from tir_kernels.spec.checksum import CHUNK, LANES, Checksum, naive


@pytest.mark.parametrize("dtype", ["uint32", "uint16"])
def test_equals_the_oracle(dtype):
    for size in (0, 1, LANES - 1, LANES, LANES + 1, CHUNK + 77):
        words = np.random.default_rng(size).integers(0, np.iinfo(dtype).max, size, dtype, endpoint=True)
        (out,) = run(Checksum(dtype), [words], [((1,), "int64")])
        assert int(out[0]) % 2**64 == naive(words)
    same_bits(lambda: run(Checksum(dtype), [words], [((1,), "int64")]))
