"""Settings of all tests."""

import os
from pathlib import Path

from hypothesis import settings

# Compiled functions are kept beside the project, not in the user's cache, and shared with the processes that tests start.
os.environ.setdefault("SPARSE_OPS_CACHE", str(Path(__file__).parent.parent / "build" / "cache"))

# A first example may compile a kernel, so time says nothing; the same examples on every run keep failures repeatable.
settings.register_profile("default-project", deadline=None, derandomize=True)
settings.load_profile("default-project")
