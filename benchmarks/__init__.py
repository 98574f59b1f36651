"""Benchmarks: `python -m benchmarks.<name> [--quick] [--json FILE] [--only SUBSTRING]`, on `benchmarks.harness`."""
