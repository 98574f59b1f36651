"""Sizes by which the steps decide, and the names by which step 1 tells step 3 what becomes of a loop."""

VECTOR, PARTIAL, FUSE = "sparse_ops.vector", "sparse_ops.partial", "sparse_ops.fuse"  # annotations of loops

SERIAL = 16384  # below as many steps, starting threads costs more than they bring
CHUNK = 4096  # elements of one task of an elementwise kernel
FEW = 2048  # a reduction to at most as many results may be cut into parts ...
TASKS = 32  # ... if it has fewer independent tasks
PART = 16384  # elements of a part
COLUMNS = 512  # more columns than `FEW` are reduced this many at a time
TILE, WAYS = 16, 8  # of a transposition: a cache line of float32, and as many lines as a cache may hold of one alignment
