"""How much a transformer keeps at its peak, for the estimates of memory.

How many features of a row there are at a time was measured at the sizes of SAM-3D-Objects with 19,072 voxels; estimates are at
most a third above that.
"""

WIDE = 12  # rows of features that a block holds at a time, feed-forward layer and copies included


def block_numbers(rows: int, channels: int) -> int:
    """Numbers that a block holds of `rows` rows of `channels` features."""
    return WIDE * rows * channels


def context_numbers(num_blocks: int, tokens: int, channels: int) -> int:
    """Keys and values of the condition of `tokens` tokens, for all blocks."""
    return 2 * num_blocks * tokens * channels
