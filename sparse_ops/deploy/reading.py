"""Reading files that may be anything: what is too large, too deep or of too many parts is refused before it is walked.

One place for limits of JSON and .safetensors; `sam3d_tvm.reading` has those of the other kinds of file. Every message names the
file, what was given and what was expected.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from stat import S_ISREG
from typing import Any

JSON_BYTES = 32 << 20  # of a file; a manifest at real size has 1 MB
JSON_NODES = 1_000_000  # values, and names of values
DEPTH = 64  # lists and objects inside of each other
INTEGERS = range(-(2**63), 2**63)
SAFETENSORS_HEADER = 32 << 20  # bytes
RANK = 32  # dimensions of an array
# Bytes of an element by the name in a .safetensors file.
ELEMENT = {"BOOL": 1, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
ELEMENT |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8}


def read_bytes(path: str | os.PathLike, limit: int, name: str | None = None) -> bytes:
    """All of a file. ValueError for one of more than `limit` bytes, which is not read, and for one that cannot be read."""
    path = Path(path)
    name = path.name if name is None else name
    data = read_head(path, limit + 1, name)
    if len(data) > limit:
        raise ValueError(f"{name}: expected at most {limit:,} bytes, given {path.stat().st_size:,}")
    return data


def digest(path: Path) -> str:
    """SHA-256 of a file, whatever its size."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def read_json(path: str | os.PathLike, name: str | None = None) -> Any:
    """What a .json file holds, see `parse_json`. ValueError as there and as `read_bytes`."""
    name = Path(path).name if name is None else name
    return parse_json(read_bytes(path, JSON_BYTES, name), name)


def parse_json(data: bytes | str, name: str) -> Any:
    """The value of a JSON text. ValueError for what is none, for more than `JSON_BYTES`, `JSON_NODES` and `DEPTH`, for a name
    that an object has twice, and for numbers that are not finite or beyond int64."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(found)
        if len(value) < len(found):
            ((most, times),) = Counter(key for key, _ in found).most_common(1)
            raise ValueError(f"expected every name once, given {shown(most)} {times} times in one object")
        return value

    def integer(text: str) -> int:
        if len(text) > 20 or int(text) not in INTEGERS:
            raise ValueError(f"expected integers within int64, given one of {len(text)} digits")
        return int(text)

    def number(text: str) -> float:
        if abs(value := float(text)) == float("inf"):
            raise ValueError(f"expected finite numbers, given {shown(text)}")
        return value

    def constant(text: str) -> float:
        raise ValueError(f"expected finite numbers, given {text}")

    data = data.encode() if isinstance(data, str) else data
    if len(data) > JSON_BYTES:
        raise ValueError(f"{name}: expected at most {JSON_BYTES:,} bytes of JSON, given {len(data):,}")
    if (parts := sum(map(data.count, (b",", b"[", b"{", b":")))) > JSON_NODES:  # no fewer than there are values
        raise ValueError(f"{name}: expected at most {JSON_NODES:,} values in a JSON file, given about {parts:,}")
    try:
        hooks = {"object_pairs_hook": pairs, "parse_int": integer, "parse_float": number, "parse_constant": constant}
        value = json.loads(data.decode(), **hooks)
        check_depth(value)
        if b"\\u" in data:
            _check_characters(value)
    except RecursionError:
        reason = f"expected at most {DEPTH} lists and objects inside of each other, given more"
    except ValueError as error:
        reason = str(error)
    else:
        return value
    raise ValueError(f"{name}: expected JSON: {reason}")


def _check_characters(value: Any) -> None:
    """ValueError for half a character, which JSON can write and nothing else can."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("expected whole characters, given half of one") from None


def check_depth(value: Any) -> None:
    """ValueError if lists and objects are more than `DEPTH` inside of each other."""
    level = [value] if isinstance(value, (Mapping, list)) else []
    for _ in range(DEPTH):
        parts = [part for node in level for part in (node.values() if isinstance(node, Mapping) else node)]
        level = [part for part in parts if isinstance(part, (Mapping, list))]
        if not level:
            return
    raise ValueError(f"expected at most {DEPTH} lists and objects inside of each other, given more")


def safetensors_header(path: str | os.PathLike, name: str | None = None) -> tuple[dict[str, Any], int]:
    """The header of a .safetensors file without its metadata, checked against the file's size, and where the data begin.

    ValueError for a file that is none: names, dtypes, shapes and places must fit each other and the file, to the byte.
    """
    path = Path(path)
    name = path.name if name is None else name
    head = read_head(path, 8, name)
    size, count = path.stat().st_size, int.from_bytes(head, "little")
    if len(head) < 8 or count > size - 8:
        given = f"a header of {count:,} bytes in a file of {size:,}" if len(head) == 8 else f"a file of {size} bytes"
        raise ValueError(f"{name}: expected a .safetensors file, given {given}: it is incomplete, or none")
    if count > SAFETENSORS_HEADER:
        raise ValueError(f"{name}: expected a header of at most {SAFETENSORS_HEADER:,} bytes, given {count:,}")
    header = parse_json(read_head(path, 8 + count, name)[8:], f"{name}, header of .safetensors")
    if not isinstance(header, dict):
        raise ValueError(f"{name}: expected names and places of arrays in its header, given {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{name}: expected strings as metadata")
    places = []
    for key, entry in header.items():
        places.append((*_place(entry, f"{name}: {shown(key)}", size - 8 - count), key))
    end = 0
    for begin, stop, key in sorted(places):
        if begin != end:
            raise ValueError(
                f"{name}: {shown(key)}: expected arrays one behind the other, this one at {end:,}, given {begin:,}"
            )
        end = stop
    if end != size - 8 - count:
        given = size - 8 - count
        raise ValueError(f"{name}: expected {end:,} bytes of arrays, as its header says, given {given:,}")
    return header, 8 + count


def _place(entry: Any, where: str, size: int) -> tuple[int, int]:
    """Where an array begins and ends. ValueError unless dtype, shape and place fit each other and `size` bytes of data."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where}: expected dtype, shape and data_offsets, given {shown(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ELEMENT:
        raise ValueError(f"{where}: expected a dtype among {', '.join(ELEMENT)}, given {shown(dtype)}")
    if not isinstance(shape, list) or len(shape) > RANK or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{where}: expected a shape of at most {RANK} integers of 0 or more, given {shown(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise ValueError(f"{where}: expected two offsets, given {shown(offsets)}")
    begin, end = offsets
    if not 0 <= begin <= end <= size:
        raise ValueError(
            f"{where}: expected offsets within {size:,} bytes of data, given {begin:,} and {end:,}: the file is incomplete"
        )
    if end - begin != (held := prod(shape) * ELEMENT[dtype]):
        raise ValueError(f"{where}: expected {held:,} bytes for {dtype} {shape}, given {end - begin:,}")
    return begin, end


def read_head(path: Path, count: int, name: str) -> bytes:
    """The first `count` bytes of a file, or all of a shorter one. ValueError for one that cannot be read."""
    try:
        if not S_ISREG(path.stat().st_mode):  # a pipe would wait for ever, a device never ends
            raise ValueError(f"{name}: expected a file, given {str(path)!r}, which is none")
        with open(path, "rb") as file:
            return file.read(count)
    except OSError as error:
        raise ValueError(f"{name}: expected a file that can be read: {error}") from error


def brief(words: Any, most: int = 1000) -> str:
    """A reason or a name in a message: it may repeat what a file holds, which is not handed to a terminal as it is."""
    text = str(words)
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return text if len(text) <= most else f"{text[:most]}..."


def shown(value: Any, most: int = 80) -> str:
    """`value` in a message: what a file holds may be long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
