"""Tests. Where their data lies; `tests.golden` also runs from the command line."""

from pathlib import Path

DATA = Path(__file__).parent / "data"
# Begins the script of a process that needs no torch, which takes seconds to import and TVM would.
NO_TORCH = "import sys; sys.modules['torch'] = None\n"
