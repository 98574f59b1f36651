"""The checksum: equal to its oracle at any size and number of threads, and different wherever something has changed."""

import ml_dtypes
import numpy as np
import pytest
import tvm

from tests.sparse_ops.walk import with_threads
from tir_kernels.cpu.isa import host_target
from tir_kernels.dispatch import kernel_for
from tir_kernels.spec.checksum import CHUNK, CHUNKS, LANES, Checksum, naive

SIZES = [0, 1, LANES - 1, LANES, LANES + 1, CHUNK - 1, CHUNK, CHUNK + 1, 6 * CHUNK + 77, (CHUNKS + 3) * CHUNK + 1]


def compiled(dtype: str):
    """The checksum of an array of words."""
    module = tvm.IRModule({"checksum": kernel_for(Checksum(dtype), host_target()).function})
    function = tvm.compile(module, host_target())["checksum"]
    return lambda words: function(tvm.runtime.tensor(words)) % 2**64


@pytest.mark.parametrize("dtype", ["uint32", "uint16"])
def test_equals_the_oracle(isa, dtype):
    call = compiled(dtype)
    for size in SIZES:
        words = np.random.default_rng(size).integers(0, np.iinfo(dtype).max, size, dtype, endpoint=True)
        assert [with_threads(count, lambda words=words: call(words)) for count in (1, 2)] == [naive(words)] * 2


@pytest.mark.parametrize("dtype", ["uint32", "uint16"])
def test_takes_no_workspace(isa, dtype):
    """TVM would not give it back, as the kernel returns a number."""
    module = tvm.compile(tvm.IRModule({"checksum": kernel_for(Checksum(dtype), host_target()).function}), host_target())
    assert "Workspace" not in module.mod.inspect_source()


def test_every_change_is_seen():
    """Of one bit, of all signs, of order, of length, and of zeros."""
    array = np.random.default_rng(0).standard_normal(2 * CHUNK + 5).astype("float32")
    seen = {naive(array.view("uint32"))}
    changed = [-array, 2 * array, array[::-1], np.roll(array, LANES), np.roll(array, 1), array[:-1], 0 * array, 0 * array[:-1]]
    for place in (0, 1, CHUNK, len(array) - 1):
        other = array.copy()
        other[place] = -other[place]
        changed.append(other)
    for a, b in ((0, LANES), (0, CHUNK), (3, len(array) - 1)):
        other = array.copy()
        other[[a, b]] = other[[b, a]]
        changed.append(other)
    seen |= {naive(np.ascontiguousarray(other).view("uint32")) for other in changed}
    assert len(seen) == 1 + len(changed)


def test_narrow_words_too():
    array = np.arange(1, 8).astype(ml_dtypes.bfloat16)
    assert len({naive(np.ascontiguousarray(other).view("uint16")) for other in (array, -array, array[::-1], array[:-1])}) == 4
