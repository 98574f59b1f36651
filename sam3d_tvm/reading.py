"""Reading files that may be anything, beside JSON and .safetensors, which `sparse_ops.deploy.reading` has.

Here are all limits: a file beyond one is refused before anything is walked, unpacked or allocated. Every message names the
file, what was given and what was expected.
"""

import io
import math
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from sparse_ops.deploy.reading import DEPTH, INTEGERS, read_bytes, read_head, shown

YAML_BYTES = 256 << 10  # the largest published one has 20 KB
YAML_NODES = 50_000  # with all that aliases stand for
ZIP_ENTRIES = 100_000
ZIP_DIRECTORY = 32 << 20  # bytes
PICKLE_BYTES = 8 << 20  # of names and sizes; the largest published one has 1 MB
PICKLE_OPCODES = 1_000_000


class _Loader(yaml.SafeLoader):
    """Names, numbers, strings, lists and mappings; counts what it composes, with aliases unfolded."""

    def __init__(self, text: str):
        super().__init__(text)
        self._nodes, self._above = 0, 0
        self._unfolded: dict[int, tuple[int, int]] = {}  # of a node with an anchor: nodes, and depth

    def compose_node(self, parent: yaml.Node, index: Any) -> yaml.Node:
        alias = self.peek_event()
        if isinstance(alias, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._unfolded:
                raise _error("expected no alias inside of what it names", alias.start_mark)
            nodes, depth = self._unfolded[id(node)]
            self._count(nodes, depth)
            return node
        before = self._nodes
        self._count(1, 1)
        self._above += 1
        node = super().compose_node(parent, index)
        self._above -= 1
        children = []
        if isinstance(node, yaml.CollectionNode):
            children = [n for pair in node.value for n in (pair if isinstance(pair, tuple) else (pair,))]
        depth = 1 + max((self._unfolded[id(child)][1] for child in children), default=0)
        self._unfolded[id(node)] = self._nodes - before, depth
        return node

    def _count(self, nodes: int, depth: int) -> None:
        self._nodes += nodes
        if self._nodes > YAML_NODES:
            raise yaml.YAMLError(f"expected at most {YAML_NODES:,} values, with aliases unfolded, given more")
        if self._above + depth > DEPTH:
            raise yaml.YAMLError(f"expected at most {DEPTH} levels, with aliases unfolded, given more")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _error("expected names, given a list or mapping", key_node.start_mark)
            if key in keys:
                raise _error(f"expected every name once, given {shown(key)} twice", key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)

    def integer(self, node: yaml.Node) -> int:
        text = self.construct_scalar(node)
        value = self.construct_yaml_int(node) if len(text) <= 100 else None
        if value not in INTEGERS:
            raise _error(f"expected integers within int64, given {shown(text)}", node.start_mark)
        return value

    def number(self, node: yaml.Node) -> float:
        value = self.construct_yaml_float(node)
        if not math.isfinite(value):
            raise _error(f"expected finite numbers, given {shown(node.value)}", node.start_mark)
        return value


def _error(words: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.YAMLError(f"{words}, in line {mark.line + 1}")


MERGE, TAG = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:"
# Dates are strings here, and tags of other types are not known.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rows if not tag.endswith(":timestamp")]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(TAG) in ("null", "bool", "str", "seq", "map")
} | {TAG + "int": _Loader.integer, TAG + "float": _Loader.number}


def read_yaml(path: str | os.PathLike, name: str | None = None) -> Any:
    """What a .yaml file holds: None, bools, int64, floats, strings, lists and mappings.

    ValueError for a file that is none; of more than `YAML_BYTES`, `YAML_NODES` with aliases unfolded, or `DEPTH`; with a name
    twice in a mapping; and with values of other types.
    """
    name = Path(path).name if name is None else name
    data = read_bytes(path, YAML_BYTES, name)
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except RecursionError:
        reason = f"expected at most {DEPTH} levels, given more"
    except (yaml.YAMLError, ValueError, LookupError, ArithmeticError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
    raise ValueError(f"{name}: not a YAML file: {reason}")


def zip_entries(path: Path, name: str) -> list[zipfile.ZipInfo]:
    """The directory of a zip file, whose entries lie within the file and beside one another.

    ValueError for a file that is none or cut short, and for a directory of more than `ZIP_ENTRIES` or `ZIP_DIRECTORY` bytes,
    before it is read.
    """
    count, size = _zip_end(path, name)
    if count > ZIP_ENTRIES or size > ZIP_DIRECTORY:
        raise ValueError(
            f"{name}: expected at most {ZIP_ENTRIES:,} entries in a zip file, listed in {ZIP_DIRECTORY:,} bytes, "
            f"given {count:,} in {size:,}"
        )
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
    except Exception as error:  # zipfile raises errors of many kinds for damaged files
        raise ValueError(f"{name}: a damaged zip file: {shown(str(error))}") from error
    end = path.stat().st_size
    held = sum(entry.compress_size for entry in entries)
    if len(entries) > ZIP_ENTRIES or held > end or any(entry.header_offset + entry.compress_size > end for entry in entries):
        raise ValueError(f"{name}: expected entries within the zip file of {end:,} bytes, given {len(entries):,} of {held:,}")
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError(f"{name}: expected every name once in a zip file, given {shown(max(names, key=names.count))} twice")
    return entries


def _zip_end(path: Path, name: str) -> tuple[int, int]:
    """Number of entries and bytes of a zip file's directory, of the record at its end."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - (1 << 16) - 98))
        tail = file.read()
    at = len(tail) - 22 if tail[-22:-18] == b"PK\5\6" else tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        raise ValueError(f"{name}: a zip file without its end: the download was not finished, or the file is cut short")
    count, length = struct.unpack("<HI", tail[at + 10 : at + 16])
    wide = tail.rfind(b"PK\6\6", 0, at)
    if wide >= 0 and len(tail) >= wide + 48:  # the record of large files
        count, length = max((count, length), struct.unpack("<QQ", tail[wide + 32 : wide + 48]))
    return count, length


def check_torch_zip(path: Path, name: str) -> None:
    """ValueError unless a zip file is one that torch writes, of tensors stored as they are, and of few and small names."""
    entries = zip_entries(path, name)
    parts = {entry.filename.partition("/")[2]: entry for entry in entries}
    if "data.pkl" not in parts:
        given = ", ".join(entry.filename for entry in entries[:3])
        raise ValueError(f"{name}: expected weights, given a zip archive of {shown(given)}: unpack it")
    if "constants.pkl" in parts:
        raise ValueError(f"{name}: not a file of weights alone: a TorchScript archive, which holds code")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(
                f"{name}: expected entries that are stored, as torch writes them, given {shown(entry.filename)}, which is "
                "compressed: save it again with torch"
            )
    pickle = parts["data.pkl"]
    if pickle.file_size > PICKLE_BYTES:
        raise ValueError(f"{name}: expected at most {PICKLE_BYTES:,} bytes of names, given {pickle.file_size:,}")
    try:
        with zipfile.ZipFile(path) as file:
            data = file.read(pickle)
    except Exception as error:  # as above
        raise ValueError(f"{name}: a damaged zip file: {shown(str(error))}") from error
    check_pickles(data, 1, path.stat().st_size, name)


LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # what torch before 1.6 begins a file with
LEGACY_PICKLES = 5  # it, a version, the system, the tensors, the keys of what follows


def check_torch_pickle(path: Path, name: str) -> None:
    """ValueError unless a file that begins as a pickle is one of torch before 1.6, of few and small names."""
    head = read_head(path, PICKLE_BYTES, name)
    try:
        magic = next(argument for code, argument, _ in pickletools.genops(head) if code.name != "PROTO")
    except (StopIteration, ValueError, UnicodeDecodeError):
        magic = None
    if magic != LEGACY_MAGIC:
        found = ", ".join(_code(_globals(head)))
        raise ValueError(f"{name}: not a file of weights alone: a pickle of other things{found and f', with {found}'}")
    check_pickles(head, LEGACY_PICKLES, path.stat().st_size, name)


def check_pickles(data: bytes, count: int, size: int, name: str) -> None:
    """ValueError for the first `count` pickles in `data`, of a file of `size` bytes, if they are more than `PICKLE_OPCODES`, or
    name code, or more numbers than the file has bytes."""
    stream, opcodes, numbers, last, found = io.BytesIO(data), 0, 0, 0, []
    reason = ""
    try:
        for _ in range(count):
            texts: list[str] = []
            for code, argument, _ in pickletools.genops(stream):
                opcodes += 1
                if opcodes > PICKLE_OPCODES:
                    raise ValueError(f"more than {PICKLE_OPCODES:,} steps")
                if isinstance(argument, int):
                    last = argument
                if code.name == "BINPERSID":
                    numbers += max(last, 0)
                _note_global(code.name, argument, texts, found)
    except (ValueError, UnicodeDecodeError, OverflowError, IndexError) as error:
        reason = shown(str(error))
    if reason:
        raise ValueError(f"{name}: expected the names of weights, given a pickle that is damaged: {reason}")
    if strange := _code(found):
        raise ValueError(f"{name}: not a file of weights alone: it holds {shown(', '.join(strange), 200)}, which may be code")
    if numbers > size:
        raise ValueError(f"{name}: expected at most as many numbers as the file has bytes, {size:,}, given {numbers:,}")


def _globals(data: bytes) -> list[str]:
    """What a pickle imports, as far as it can be read."""
    found: list[str] = []
    texts: list[str] = []
    try:
        for place, (code, argument, _) in enumerate(pickletools.genops(data)):
            _note_global(code.name, argument, texts, found)
            if place > PICKLE_OPCODES:
                break
    except (ValueError, UnicodeDecodeError, OverflowError):
        pass
    return found


def _note_global(code: str, argument: Any, texts: list[str], found: list[str]) -> None:
    """Adds to `found` what an opcode imports; `texts` are the last strings."""
    if code in ("GLOBAL", "INST"):
        found.append(argument.replace(" ", "."))
    elif code == "STACK_GLOBAL":
        found.append(".".join(texts[-2:]))
    elif isinstance(argument, str):
        texts[:] = [*texts[-1:], argument]


# What files of weights import; of these torch lets run what makes tensors.
_WEIGHTS = re.compile(
    r"(torch|numpy|collections)\.[\w.]+|_codecs\.encode|(__builtin__|builtins)\.(set|complex|bytearray|int|float)"
)


def _code(names: list[str]) -> list[str]:
    """Those of `names` that files of weights do not import."""
    return sorted({name for name in names if not _WEIGHTS.fullmatch(name)})
