"""TVM without torch: TVM imports it where it is installed, which takes seconds, and memory, of all who run what is compiled."""

import sys


def import_tvm() -> None:
    """Imports TVM as if there were no torch, unless one of them is imported already; torch can be imported afterwards."""
    if "tvm" in sys.modules or "torch" in sys.modules:
        return
    sys.modules["torch"] = None  # makes its import fail
    try:
        import tvm  # noqa: F401
    finally:
        del sys.modules["torch"]
