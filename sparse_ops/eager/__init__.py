"""Eager calls of the ops on numpy, torch or TVM arrays: no graph is built by the caller."""
