"""Hypothesis strategies for coordinates."""

import numpy as np
from hypothesis import strategies as st


@st.composite
def coordinates(draw, max_rows: int = 60, low: int = -5, high: int = 6, min_rows: int = 0):
    """int32 [N, 4]: distinct rows in random order; batch elements may be empty, axes negative, rows none, one or many."""
    batches = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True))
    cell = st.tuples(st.sampled_from(batches), *[st.integers(low, high)] * 3)
    rows = draw(st.lists(cell, min_size=min_rows, max_size=max_rows, unique=True))
    return np.array(rows, "int32").reshape(-1, 4)


def table_of(kernel_map) -> np.ndarray:
    """The neighbour table int32 [taps, M] that the pairs of a `KernelMap` say, checked for their layout."""
    pair_in, pair_out, segment, rows = (array.numpy() for array in kernel_map.arrays)
    taps, outputs = segment.shape[1] - 1, kernel_map.coords_out.shape[0]
    assert rows.tolist() == [kernel_map.coords_in.shape[0], outputs]
    per_block = pair_in.shape[1] // taps
    table = np.full((taps, outputs), -1, "int32")
    for block, starts in enumerate(segment):
        assert starts[0] == 0 and (np.diff(starts) >= 0).all()
        for tap in range(taps):
            pairs = slice(starts[tap], starts[tap + 1])
            places = pair_out[block, pairs]
            assert (np.diff(places) > 0).all()  # rows ascend within a tap, so the order of every sum is fixed
            table[tap, block * per_block + places] = pair_in[block, pairs]
    return table
