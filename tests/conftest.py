"""Settings of all tests."""

from hypothesis import settings

# A first example may compile a kernel, so time says nothing; the same examples on every run keep failures repeatable.
settings.register_profile("default-project", deadline=None, derandomize=True)
settings.load_profile("default-project")
