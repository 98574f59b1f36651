"""Graphs of torch.export in Relax: converters of our ops and of what TVM's importer lacks, and torch's word on the result.

- `import_program` writes the function, `export` makes the graph that it reads;
- `compare` looks whether a component computes what torch does;
- `Context` is what a converter is given, `CONVERTERS` are those that are here, `check_converters` looks at a user's.
"""

from . import (  # noqa: F401  each registers its converters
    arithmetic,
    assign,
    create,
    dense,
    layout,
    numbers,
    order,
    own_ops,
    padding,
    reduce,
    rows,
    scatter,
    unique,
)
from .compare import TooCoarse, compare
from .context import Context
from .export import export
from .registry import CONVERTERS, Converter, check_converters
from .translate import import_program

__all__ = ["CONVERTERS", "Context", "Converter", "TooCoarse", "check_converters", "compare", "export", "import_program"]
