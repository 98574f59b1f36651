"""Compiled models as files: from torch.export or from `sparse_ops.nn` to a folder that runs without either."""
