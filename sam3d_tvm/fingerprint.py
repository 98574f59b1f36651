"""A hash over the files of this package that a part of it is made of: they are found by following its imports.

What is compiled is kept under such hashes, so that nothing made by other code is taken for it.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent  # the folder of the package


@cache
def fingerprint(package: str, root: Path = ROOT) -> str:
    """Changes with every file of `source_files`, and with their names."""
    digest = hashlib.sha256()
    for file in source_files(package, root):
        data = (root / file).read_bytes()
        digest.update(f"{file} {len(data)}\0".encode() + data)
    return digest.hexdigest()


def source_files(package: str, root: Path = ROOT) -> list[str]:
    """The files of `package` (a dotted name) and its subfolders, and all of the same top-level package that these import, at
    whatever place in a file, and so on; relative to `root`, ascending.

    Importing a module runs the `__init__.py` of every package on the way, so these count too, but for those above `package`:
    they are for all that lies below, such as a list of models, and count where something is imported from them.
    """
    above = {".".join(package.split(".")[:n]) for n in range(1, package.count(".") + 1)}
    found, todo = set(), sorted((root / package.replace(".", "/")).rglob("*.py"))
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found.add(file)
        for module in _imported(file, root):
            parts = module.split(".")
            if parts[0] == package.split(".")[0]:
                on_the_way = {".".join(parts[:n]) for n in range(1, len(parts))} - above
                todo += [path for name in (module, *on_the_way) if (path := _file(name, root)) is not None]
    return sorted(file.relative_to(root).as_posix() for file in found)


def _imported(file: Path, root: Path) -> Iterator[str]:
    """The modules that a file imports, by their full names; for a name of a module that module."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(root).parts[: -node.level] if node.level else ()
            module = ".".join((*package, *([node.module] if node.module else ())))
            for alias in node.names:
                is_module = _file(f"{module}.{alias.name}", root) is not None
                yield f"{module}.{alias.name}" if is_module else module


def _file(module: str, root: Path) -> Path | None:
    """The file of a module or package, None if there is none here."""
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
