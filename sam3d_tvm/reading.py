"""Reading files that may be anything, beside JSON and .safetensors, which `sparse_ops.deploy.reading` has.

Here are all limits: a file beyond one is refused before anything is walked, unpacked or allocated. Every message names the
file, what was given and what was expected.
"""

import ast
import io
import math
import os
import pickletools
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml
from PIL import Image

from sparse_ops.deploy.reading import DEPTH, INTEGERS, brief, read_bytes, read_head, shown

YAML_BYTES = 256 << 10  # the largest published one has 20 KB
YAML_NODES = 50_000  # with all that aliases stand for
ZIP_ENTRIES = 100_000
ZIP_DIRECTORY = 32 << 20  # bytes
PICKLE_BYTES = 8 << 20  # of names and sizes; the largest published one has 1 MB
PICKLE_OPCODES = 1_000_000
NPY_HEADER = 4096  # bytes; one of numbers has about 100
EXPANDED = 64 << 20  # bytes of an array or of pixels, below which it does not count how few bytes they expand from
# Bytes that a byte of a file may stand for: in an array, in a PNG (what deflate reaches), and in pictures of other formats, of
# which flat ones have less.
OF_ARRAY, OF_PNG, OF_PICTURE = 200, 1100, 4096
PLY_HEADER, PLY_LINES = 64 << 10, 1000  # bytes and lines; Gaussians with all harmonics have 70 lines
PLY_LISTS = 1_000_000  # rows of elements with lists, which are read one by one


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
        value = self.construct_yaml_int(node) if len(text) <= 100 else INTEGERS.stop
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
        if re.search(r"\\u[dD][89a-fA-F]|\\U0000[dD][89a-fA-F]", text):
            raise ValueError("expected whole characters, given half of one")
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except RecursionError:
        reason = f"expected at most {DEPTH} levels, given more"
    except (yaml.YAMLError, ValueError, LookupError, ArithmeticError, AttributeError, TypeError) as error:
        reason = brief(" ".join(str(error).split()), 300) or type(error).__name__
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
    ((most, times),) = Counter(entry.filename for entry in entries).most_common(1) or [("", 0)]
    if times > 1:
        raise ValueError(f"{name}: expected every name once in a zip file, given {shown(most)} {times} times")
    return entries


def _zip_end(path: Path, name: str) -> tuple[int, int]:
    """Number of entries and bytes of a zip file's directory, of the record at its end."""
    read_head(path, 0, name)  # it is a file that can be read
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
                if code.name in ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4"):
                    last = int(argument)
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


def torch_kind(path: Path, name: str) -> str | None:
    """ "zip" or "pickle" for a file of torch, of whose tensors only names and sizes are looked at; None for a file of another
    kind. ValueError for one that is damaged, incomplete, or holds code, and for other archives and pickles."""
    head = read_head(path, 2, name)
    if head == b"PK":
        check_torch_zip(path, name)
        return "zip"
    if head[:1] == b"\x80" and head[1:] in (b"\2", b"\3", b"\4", b"\5"):
        check_torch_pickle(path, name)
        return "pickle"
    return None


def load_torch(path: Path, name: str, kind: str | None = None) -> Any:
    """What a file of torch holds, of a `torch_kind` that is known or is found here: tensors, in containers, as they are stored.

    ValueError where torch is not installed, for what is no such file, and for one that holds more or is larger in memory.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"{name}: torch is needed to read it, or convert it to .safetensors: {error}") from error
    kind, value, refused = kind or torch_kind(path, name), None, False
    if kind is None:
        raise ValueError(f"{name}: expected a file of torch, given one that begins {shown(read_head(path, 16, name))}")
    try:  # files of torch before 1.6 cannot be mapped
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
    except Exception:  # of many kinds, for files that are damaged, or hold more than tensors
        refused = True
    if refused:  # here nothing is left of what torch says, which is to load it in an unsafe way
        raise ValueError(f"{name}: not a file of weights alone: it is damaged, or holds more than tensors and numbers")
    size, level = path.stat().st_size, [value]
    for _ in range(DEPTH):
        for tensor in (node for node in level if isinstance(node, torch.Tensor)):
            kept = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
            if not kept or tensor.numel() * tensor.element_size() > size:
                given = f"{tensor.dtype} {list(tensor.shape)}, {tensor.layout} on {tensor.device}"
                raise ValueError(f"{name}: expected tensors within the file of {size:,} bytes, given {given}")
        level = [child for node in level if isinstance(node, (dict, list, tuple)) for child in _children(node)]
        if len(level) > PICKLE_OPCODES:
            break
    if level:
        raise ValueError(f"{name}: expected tensors in few containers, given more than {DEPTH} inside of each other")
    return value


def _children(node: dict | list | tuple) -> Iterable:
    return node.values() if isinstance(node, dict) else node


def read_npy(file: BinaryIO, size: int, name: str) -> np.ndarray:
    """The array of an open .npy file of `size` bytes: bools, integers or floats, of which no more are read than it says.

    ValueError for a file that is none, holds objects, or is not as long as its header says, before anything is allocated.
    """
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:7] not in b"\1\2\3" or len(start) < 8:
        raise ValueError(f"{name}: expected a .npy file of version 1 to 3, given one that begins {shown(start)}")
    length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    if length > NPY_HEADER:
        raise ValueError(f"{name}: expected a header of at most {NPY_HEADER:,} bytes in a .npy file, given {length:,}")
    text = file.read(length)
    try:
        header = ast.literal_eval(text.decode("latin-1" if start[6] < 3 else "utf-8").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{name}: expected a header of names and values in a .npy file, given {shown(text)}") from error
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError(f"{name}: expected dtype, order and shape in a .npy file, given {shown(header)}")
    descr, shape = header["descr"], header["shape"]
    if not isinstance(descr, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|f16)", descr):
        objects = "pickled objects, which may be code and are not read" if "O" in str(descr) else shown(descr)
        raise ValueError(f"{name}: expected bools, integers or floats in a .npy file, given {objects}")
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{name}: expected a shape of integers of 0 or more, given {shown(shape)}")
    dtype = np.dtype(descr)
    head = 8 + (2 if start[6] == 1 else 4) + length
    if math.prod(shape) * dtype.itemsize > size - head:
        raise ValueError(f"{name}: its header says {list(shape)} of {dtype}, and {size - head:,} bytes follow")
    values = np.empty(math.prod(shape), dtype)
    if values.size and file.readinto(values.view(np.uint8)) != values.nbytes:
        raise ValueError(f"{name}: expected {values.nbytes:,} bytes for {dtype} {list(shape)}, given fewer")
    return values.reshape(shape[::-1]).T if header["fortran_order"] else values.reshape(shape)


def npz_entries(path: Path, name: str) -> dict[str, zipfile.ZipInfo]:
    """The arrays of a .npz file by name. ValueError as `zip_entries`, and for one that says it expands to more than it can."""
    found = {}
    for entry in zip_entries(path, name):
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise ValueError(f"{name}: expected entries as numpy writes them, given {shown(entry.filename)}, packed otherwise")
        packed, size = entry.compress_size, entry.file_size
        if size > packed if entry.compress_type == zipfile.ZIP_STORED else size > max(EXPANDED, OF_ARRAY * packed):
            raise ValueError(f"{name}: {shown(entry.filename)} expands to {size:,} bytes from {packed:,}")
        found[entry.filename.removesuffix(".npy")] = entry
    return found


def read_npz(path: Path, name: str, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of a .npz file of these names. ValueError as `npz_entries` and `read_npy`, and for one that is not there."""
    entries, found = npz_entries(path, name), {}
    if missing := [key for key in keys if key not in entries]:
        raise ValueError(f"{name}: expected {', '.join(missing)}, given {brief(', '.join(entries), 200) or 'none'}")
    try:
        with zipfile.ZipFile(path) as file:
            for key in keys:
                with file.open(entries[key]) as member:
                    found[key] = read_npy(member, entries[key].file_size, f"{name}: {key}")
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{name}: a damaged zip file: {shown(str(error))}") from error
    return found


def check_ply(path: str | os.PathLike, name: str) -> None:
    """ValueError unless a file begins with the header of a .ply file, and is as long as its elements, types and counts ask."""
    path = Path(path)
    head = read_head(path, PLY_HEADER, name)
    end = re.search(rb"\nend_header(\r\n|\n|\r)|\rend_header(\r\n?)", head)
    if not head.startswith(b"ply") or end is None:
        given = f"none within {PLY_HEADER:,} bytes" if head.startswith(b"ply") else f"{shown(head[:16])}"
        raise ValueError(f"{name}: expected the header of a .ply file, up to end_header, given {given}")
    lines = head[: end.start()].decode("latin-1").splitlines()
    if len(lines) > PLY_LINES:
        raise ValueError(f"{name}: expected at most {PLY_LINES:,} lines in the header of a .ply file, given {len(lines):,}")
    left, text, elements = path.stat().st_size - end.end(), False, []
    for line in lines[1:]:
        words = line.split()
        if words[:1] == ["format"]:
            text = words[1:2] == ["ascii"]
        elif words[:1] == ["element"]:
            if len(words) != 3 or not re.fullmatch(r"\d{1,18}", words[2], re.ASCII):
                raise ValueError(f"{name}: expected a name and a number of rows, given {shown(line)}")
            elements.append([words[1], int(words[2]), 0, False, set()])
        elif words[:1] == ["property"]:
            is_list = words[1:2] == ["list"]
            kind = words[2] if is_list and len(words) > 2 else words[1] if len(words) > 1 else ""
            if not elements or kind not in PLY_TYPES or len(words) != (5 if is_list else 3) or words[-1] in elements[-1][4]:
                raise ValueError(f"{name}: expected a type and a name of its own for a property, given {shown(line)}")
            elements[-1][4].add(words[-1])
            elements[-1][2] += 2 if text else PLY_TYPES[kind]  # a digit and a space
            elements[-1][3] |= is_list
    if len({element[0] for element in elements}) < len(elements):
        raise ValueError(f"{name}: expected every element of a .ply file once, given {', '.join(e[0] for e in elements[:10])}")
    lists = 0
    for element, count, width, has_lists, _ in elements:
        if count and not width:
            raise ValueError(f"{name}: expected properties of the element {shown(element)}, given none for {count:,} rows")
        lists += count if has_lists else 0
        if lists > PLY_LISTS:
            raise ValueError(f"{name}: expected at most {PLY_LISTS:,} rows with lists, given {lists:,} up to {shown(element)}")
        left -= count * width
        if left < -1:  # the last space may be missing
            raise ValueError(
                f"{name}: expected a .ply file that holds {count:,} rows of {shown(element)}, given {-left:,} bytes too few: "
                "it is cut short"
            )


_PLY_SIZES = ("char int8 uchar uint8", "short int16 ushort uint16", "int int32 uint uint32 float float32", "double float64")
PLY_TYPES = {name: 1 << power for power, names in enumerate(_PLY_SIZES) for name in names.split()}


def check_expansion(picture: Image.Image, size: int, name: str) -> None:
    """ValueError for a picture whose header promises more pixels than so many bytes of a file hold, before they are
    allocated."""
    pixels = picture.width * picture.height
    promised = pixels // 8 if picture.mode == "1" else pixels * len(picture.getbands())
    if promised > max(EXPANDED, (OF_PNG if picture.format == "PNG" else OF_PICTURE) * size):
        raise ValueError(
            f"{name}: expected pixels that {size:,} bytes can hold, given a header of {picture.width} x {picture.height}"
        )


class _Clipped(io.BufferedReader):
    """An open file that is never asked for more bytes than it has: readers ask for as many as a damaged header says, and Python
    allocates them first."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(size if size is None else min(size, self._size))


def open_clipped(path: str | os.PathLike) -> BinaryIO:
    """A file open for reading, of which reads of any size take no more memory than it has bytes. OSError as `open`."""
    return _Clipped(path)
