"""What is granted on a device: its memory counts, or the variable in its place."""

import numpy as np
import pytest

from tests.tir_kernels.cuda.on_device import run
from tir_kernels.memory import VARIABLE, available_device_bytes
from tir_kernels.spec.memory import GrantMemory, Size

ASKS = GrantMemory("to_dense", (("float32", (Size(0), 1 << 20)), ("int32", (Size(0, axis=1),))), (("float32", 2),), numbers=1)
ROWS = np.zeros((2, 3), "float32")


def ask(number: int) -> np.ndarray:
    return run(ASKS, [ROWS, number], [((1,), "int64")])[0]


def test_what_fits_is_granted(monkeypatch):
    assert ask(1) == [1]
    monkeypatch.setenv(VARIABLE, str(1 << 34))
    assert available_device_bytes() == 1 << 34
    assert ask(1 << 11) == [1]


def test_what_does_not_fit(monkeypatch):
    with pytest.raises(ValueError, match=r"^to_dense: .*GiB of memory that are left, given float32 \[1048576, 1048576\]"):
        ask(1 << 20)
    monkeypatch.setenv(VARIABLE, str(1 << 31))
    with pytest.raises(ValueError, match=r"^to_dense: expected what fits the 2.0 GiB .* which takes 8.0 GiB"):
        ask(1 << 11)
    monkeypatch.setenv(VARIABLE, "much")
    with pytest.raises(ValueError, match=f"{VARIABLE}: expected a number of bytes, given 'much'"):
        ask(1 << 11)
