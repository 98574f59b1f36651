"""Examples of every op, for the tests and the benchmarks of this package and of those who extend it."""
