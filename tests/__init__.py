"""Tests. Where their data lies; `tests.golden` also runs from the command line."""

from pathlib import Path

DATA = Path(__file__).parent / "data"
