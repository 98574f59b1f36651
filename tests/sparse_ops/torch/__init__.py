"""Tests of `sparse_ops.torch`."""
