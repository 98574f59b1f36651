"""What kernels do once something was refused: they stay within memory, look for nothing more, and the first refusal stands."""

import re

import numpy as np
import pytest

from tests.tir_kernels.cuda.on_device import run
from tir_kernels.cuda.guards import CODES
from tir_kernels.guards import RAISE_ORDER, STATUS_ARGUMENTS, STATUS_CODE, STATUS_FIRST, STATUS_SIZE
from tir_kernels.spec.batch_offsets import BatchOffsets
from tir_kernels.spec.layer_norm import LayerNorm
from tir_kernels.spec.linear import Linear
from tir_kernels.spec.modulated_add import ModulatedAdd

ROWS, CHANNELS = 3, 4
X = np.ones((ROWS, CHANNELS), "float32")
INDEX = np.zeros(ROWS, "int32")
BIAS, NO_TABLE = np.ones(CHANNELS, "float32"), np.ones((0, CHANNELS), "float32")


def test_the_place_of_an_earlier_kernel_is_not_looked_at():
    """A kernel before this one refused row 1000 of its own coordinates; these have three."""
    status = np.zeros(STATUS_SIZE, "int64")
    status[STATUS_CODE], status[STATUS_FIRST] = CODES[RAISE_ORDER], 1000
    status[STATUS_ARGUMENTS : STATUS_ARGUMENTS + 3] = 1000, 0, 1
    coords = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], "int32")
    with pytest.raises(ValueError, match="coords: row 1000 has batch index 0 after 1"):
        run(BatchOffsets(), [coords], [((3,), "int32")], status=status)


@pytest.mark.parametrize(
    ("spec", "inputs"),
    [
        (ModulatedAdd(CHANNELS, "float32", True), [X, X, NO_TABLE, INDEX]),
        (LayerNorm(CHANNELS, "float32", True), [X, BIAS, BIAS, NO_TABLE, NO_TABLE, INDEX]),
        (
            Linear(CHANNELS, CHANNELS, "float32", has_gate=True, has_index=True, out_dtype="float32"),
            [X, np.ones((CHANNELS, CHANNELS), "float32"), BIAS, NO_TABLE, INDEX],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_tables_of_no_batch_elements_are_not_read(spec, inputs):
    words = re.escape("batch_index: row 0 is 0, expected 0 to -1")
    with pytest.raises(ValueError, match=f"^{words}$"):
        run(spec, inputs, [((ROWS, CHANNELS), "float32")])
