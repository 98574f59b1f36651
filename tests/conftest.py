"""Settings of all tests."""

import os
from pathlib import Path

from hypothesis import settings

# Compiled functions are kept beside the project, not in the user's cache, and shared with the processes that tests start.
os.environ.setdefault("SPARSE_OPS_CACHE", str(Path(__file__).parent.parent / "build" / "cache"))
# Tests run beside each other on all cores, so workers that wait for their next kernel leave theirs to others.
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0")

# A first example may compile a kernel, so time says nothing; the same examples on every run keep failures repeatable.
settings.register_profile("default-project", deadline=None, derandomize=True)
settings.load_profile("default-project")


def pytest_collection_modifyitems(items):
    """The longest file comes first. A file is one worker's, so that what its tests share is compiled once."""
    items.sort(key=lambda item: item.path.name != "test_golden.py")
