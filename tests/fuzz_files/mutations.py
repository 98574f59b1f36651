"""What may befall a file: any bytes, words of a text, and parts of formats, whose lengths and sums are then set right."""

import io
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

Rng = np.random.Generator
LIMITS = [0, 1, 2, 3, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32]
LIMITS += [2**40, 2**53, 2**63 - 1, 2**63, 2**64 - 1]
MOST = 1 << 22  # bytes that a mutated file has at most


# Bytes.


def _place(rng: Rng, size: int) -> int:
    """A place in a file, near its ends more often than not."""
    near = int(rng.integers(3))
    if near == 0:
        return int(rng.integers(max(size, 1)))
    offset = int(rng.integers(max(min(size, 256 if near == 1 else 64), 1)))
    return offset if rng.random() < 0.8 else max(size - 1 - offset, 0)


def flip(rng: Rng, data: bytearray) -> bytearray:
    for _ in range(int(rng.choice([1, 1, 2, 8]))):
        if data:
            data[_place(rng, len(data))] ^= 1 << int(rng.integers(8))
    return data


def scribble(rng: Rng, data: bytearray) -> bytearray:
    at, count = _place(rng, len(data)), int(rng.integers(1, 33))
    data[at : at + count] = rng.bytes(count)
    return data


def zeros(rng: Rng, data: bytearray) -> bytearray:
    at, count = _place(rng, len(data)), int(rng.choice([1, 4, 64, 4096]))
    data[at : at + count] = bytes(len(data[at : at + count]))
    return data


def truncate(rng: Rng, data: bytearray) -> bytearray:
    return data[: _place(rng, len(data))]


def insert(rng: Rng, data: bytearray) -> bytearray:
    at = _place(rng, len(data))
    data[at:at] = rng.bytes(int(rng.choice([1, 4, 64, 1000])))
    return data


def remove(rng: Rng, data: bytearray) -> bytearray:
    at = _place(rng, len(data))
    del data[at : at + int(rng.choice([1, 2, 4, 64, 1000]))]
    return data


def repeat(rng: Rng, data: bytearray) -> bytearray:
    at, count = _place(rng, len(data)), int(rng.choice([4, 16, 256, 4096]))
    block = bytes(data[at : at + count])
    data[at:at] = block * int(rng.choice([1, 2, 50]))
    return data[:MOST]


def swap(rng: Rng, data: bytearray) -> bytearray:
    count = int(rng.choice([4, 16, 256]))
    a, b = sorted((_place(rng, len(data)), _place(rng, len(data))))
    if a + count <= b:
        data[a : a + count], data[b : b + count] = data[b : b + count], data[a : a + count]
    return data


def number(rng: Rng, data: bytearray) -> bytearray:
    """A number at the limits of its type in place of what may be a length, a count or an offset."""
    width = int(rng.choice([1, 2, 4, 8]))
    at = _place(rng, len(data))
    at -= at % int(rng.choice([1, width]))
    value = int(LIMITS[rng.integers(len(LIMITS))]) + int(rng.integers(-1, 2))
    packed = (value % (1 << 8 * width)).to_bytes(width, str(rng.choice(["little", "big"])))
    data[at : at + width] = packed[: len(data) - at]
    return data


def near_number(rng: Rng, data: bytearray) -> bytearray:
    """A byte, a little more or less."""
    if data:
        at = _place(rng, len(data))
        data[at] = (data[at] + int(rng.choice([-2, -1, 1, 2, 16]))) % 256
    return data


def append(rng: Rng, data: bytearray) -> bytearray:
    return data + rng.bytes(int(rng.choice([1, 8, 1000]))) if rng.random() < 0.5 else data + data


def nothing(rng: Rng, data: bytearray) -> bytearray:
    return bytearray()


BYTES = [
    flip,
    flip,
    scribble,
    zeros,
    truncate,
    truncate,
    insert,
    remove,
    repeat,
    swap,
    number,
    number,
    near_number,
    append,
    nothing,
]


# Text.

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(10)
)
WORDS = [
    "0", "-1", "1", "2", "255", "65536", str(2**31), str(2**63 - 1), str(2**63), str(-(2**63) - 1), "9" * 25, "9" * 5000,
    "1e999", "-1e999", "1e-999", ".inf", ".nan", "NaN", "Infinity", "0x" + "f" * 4000, "1:2:3:4", "0777", "null", "~", "true",
    "false", "no", '""', "[]", "{}", "[[]]", '"a"', '"' + "a" * 20000 + '"', "[" * 100 + "]" * 100, "[" * 100000, "{" * 5000,
    '{"a":' * 5000, "[0, 1]", "2001-99-99", "2001-01-01", "!!python/object/apply:os.mkdir [ran]", "!!int abc", "!!int ''",
    "!!float ''", "!!bool x", "!!binary x", "!!timestamp x", "!!set {a}", "!!omap [a: 1]", "!x y", "&a [*a]", "*a", "<<: *a",
    "&a {<<: *a}", "? [a]\n: b", "=", '"\\ud800"', '"\\u0000"', "\x00",
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "\u2028", "\ufeff", "%YAML 9.9", "---", "...", "- " * 2000,
    "../x", "/etc/passwd", "a\\b", "%TAG ! !", "|", ">", "@", "`", "\t", "a: " * 500,
]  # fmt: skip


def _text(change: Callable[[Rng, str], str]) -> Callable[[Rng, bytearray], bytearray]:
    def mutation(rng: Rng, data: bytearray) -> bytearray:
        return bytearray(change(rng, data.decode("latin-1")).encode("utf-8", "surrogatepass")[:MOST])

    mutation.__name__ = change.__name__
    return mutation


def _pieces(text: str) -> list[tuple[int, int]]:
    """Where the words of a text are: names, numbers, strings."""
    import re

    return [match.span() for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[\w.+-]+', text)]


@_text
def word(rng: Rng, text: str) -> str:
    """A word becomes another one."""
    pieces = _pieces(text)
    if not pieces:
        return text
    begin, end = pieces[int(rng.integers(len(pieces)))]
    return text[:begin] + str(rng.choice(WORDS)) + text[end:]


@_text
def digits(rng: Rng, text: str) -> str:
    """A number becomes one at the limits of its type."""
    pieces = [piece for piece in _pieces(text) if text[piece[0] : piece[1]].lstrip("-").isdigit()]
    if not pieces:
        return text
    begin, end = pieces[int(rng.integers(len(pieces)))]
    value = int(LIMITS[rng.integers(len(LIMITS))]) * int(rng.choice([1, 1, -1])) + int(rng.integers(-1, 2))
    return text[:begin] + str(value) + text[end:]


@_text
def exchange(rng: Rng, text: str) -> str:
    """A word becomes one from elsewhere in the text."""
    pieces = _pieces(text)
    if not pieces:
        return text
    (begin, end), (a, b) = (pieces[int(i)] for i in rng.integers(len(pieces), size=2))
    return text[:begin] + text[a:b] + text[end:]


@_text
def line_again(rng: Rng, text: str) -> str:
    """A name twice: a line, or a part of one between commas, is repeated."""
    mark = "," if rng.random() < 0.5 and "," in text else "\n"
    lines = text.split(mark)
    at = int(rng.integers(len(lines)))
    return mark.join([*lines[:at], *[lines[at]] * int(rng.choice([2, 3, 1000])), *lines[at + 1 :]])


@_text
def line_less(rng: Rng, text: str) -> str:
    lines = text.split("\n")
    del lines[int(rng.integers(len(lines)))]
    return "\n".join(lines)


@_text
def lines_swapped(rng: Rng, text: str) -> str:
    lines = text.split("\n")
    a, b = (int(i) for i in rng.integers(len(lines), size=2))
    lines[a], lines[b] = lines[b], lines[a]
    return "\n".join(lines)


@_text
def indented(rng: Rng, text: str) -> str:
    lines = text.split("\n")
    at = int(rng.integers(len(lines)))
    lines[at] = " " * int(rng.choice([1, 2, 4, 1000])) + lines[at] if rng.random() < 0.5 else lines[at].lstrip()
    return "\n".join(lines)


@_text
def bomb(rng: Rng, text: str) -> str:
    """Aliases of aliases."""
    return BOMB + text if rng.random() < 0.5 else text + "\n" + BOMB


@_text
def nested(rng: Rng, text: str) -> str:
    """The text, or a word of it, deep inside of lists or mappings."""
    depth = int(rng.choice([10, 60, 70, 200, 2000, 50000]))
    opening, closing = [("[", "]"), ('{"a":', "}"), ("{a: ", "}"), ("- ", "")][int(rng.integers(4))]
    if rng.random() < 0.3:
        return opening * depth + text + closing * depth
    pieces = _pieces(text)
    if not pieces:
        return text
    begin, end = pieces[int(rng.integers(len(pieces)))]
    return text[:begin] + opening * depth + text[begin:end] + closing * depth + text[end:]


@_text
def anchored(rng: Rng, text: str) -> str:
    """A word that names itself or another one."""
    pieces = _pieces(text)
    if len(pieces) < 2:
        return text
    (begin, end), (a, b) = sorted(pieces[int(i)] for i in rng.integers(len(pieces), size=2))
    if end > a:
        return text
    return text[:begin] + "&n " + text[begin:end] + text[end:a] + "*n" + text[b:]


@_text
def many(rng: Rng, text: str) -> str:
    """Far more of it."""
    return text * int(rng.choice([2, 100, 5000])) if rng.random() < 0.5 else text + "\nx: [" + "0, " * 200000 + "]"


TEXT = [
    word,
    word,
    word,
    digits,
    digits,
    exchange,
    line_again,
    line_less,
    lines_swapped,
    indented,
    bomb,
    nested,
    anchored,
    many,
]


# Formats.


def _json_header(change) -> Callable[[Rng, bytearray], bytearray]:
    """A mutation of the header of a .safetensors file, whose length is set right."""

    def mutation(rng: Rng, data: bytearray) -> bytearray:
        length = int.from_bytes(data[:8], "little")
        header = bytes(change(rng, bytearray(data[8 : 8 + length])))
        return bytearray(len(header).to_bytes(8, "little")) + header + data[8 + length :]

    mutation.__name__ = f"header_{change.__name__}"
    return mutation


def overlapping(rng: Rng, data: bytearray) -> bytearray:
    """Offsets, shapes and dtypes of a .safetensors file that do not fit."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    for _ in range(int(rng.choice([1, 2, 5]))):
        entry = header[names[int(rng.integers(len(names)))]]
        what = int(rng.integers(4))
        if what == 0:
            entry["data_offsets"] = header[names[int(rng.integers(len(names)))]]["data_offsets"]
        elif what == 1:
            entry["data_offsets"][int(rng.integers(2))] += int(rng.choice([-(2**62), -8, -1, 1, 8, 2**62]))
        elif what == 2:
            entry["shape"] = [int(n) for n in rng.choice([0, 1, 2, 2**31, 2**62], int(rng.integers(0, 6)))]
        else:
            entry["dtype"] = str(rng.choice(["F64", "BOOL", "F16", "BF16", "I8", "F4", "", "f32"]))
    text = json.dumps(header).encode()
    return bytearray(len(text).to_bytes(8, "little")) + text + data[8 + length :]


def _entries(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return [(entry.filename, file.read(entry)) for entry in file.infolist()]


def _packed(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytearray:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as file:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data in entries:
            file.writestr(zipfile.ZipInfo(name), data, method)
    return bytearray(out.getvalue())


def entry_changed(rng: Rng, data: bytearray) -> bytearray:
    """What an entry of an archive holds is changed, with its sum."""
    entries = _entries(data)
    small = [i for i, (name, held) in enumerate(entries) if name.endswith(("data.pkl", ".npy", "version", "byteorder"))]
    at = int(rng.choice(small)) if small and rng.random() < 0.8 else int(rng.integers(len(entries)))
    held = bytearray(entries[at][1])
    for _ in range(int(rng.choice([1, 1, 3]))):
        held = BYTES[int(rng.integers(len(BYTES)))](rng, held)
    entries[at] = entries[at][0], bytes(held)
    return _packed(entries)


def entry_bomb(rng: Rng, data: bytearray) -> bytearray:
    """Entries that expand, or very many of them."""
    entries = _entries(data)
    kind = int(rng.integers(3))
    if kind == 0:
        at = int(rng.integers(len(entries)))
        entries[at] = entries[at][0], bytes(1 << 26)
        return _packed(entries, zipfile.ZIP_DEFLATED)
    if kind == 1:
        return _packed(entries + [(f"x{i}", b"") for i in range(20000)])
    return _packed(entries, int(rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])))


def entries_moved(rng: Rng, data: bytearray) -> bytearray:
    """Entries that are missing, twice, or under other names."""
    entries = _entries(data)
    at, kind = int(rng.integers(len(entries))), int(rng.integers(4))
    if kind == 0:
        del entries[at]
    elif kind == 1:
        entries.append(entries[at])
    elif kind == 2:
        entries[at] = str(rng.choice(["x", "../x", "/x", "a\0b", "archive/data.pkl", "x" * 60000])), entries[at][1]
    else:
        other = int(rng.integers(len(entries)))
        entries[at], entries[other] = (entries[at][0], entries[other][1]), (entries[other][0], entries[at][1])
    return _packed(entries)


def directory(rng: Rng, data: bytearray) -> bytearray:
    """A number in the directory of an archive, or at its end."""
    marks = [b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\3\4"]
    places = [at for mark in marks for at in _find(data, mark)]
    if places:
        at = int(rng.choice(places)) + int(rng.integers(4, 46))
        width = int(rng.choice([1, 2, 4, 8]))
        value = int(LIMITS[rng.integers(len(LIMITS))]) % (1 << 8 * width)
        data[at : at + width] = value.to_bytes(width, "little")[: len(data[at : at + width])]
    return data


def _find(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


def chunk(rng: Rng, data: bytearray) -> bytearray:
    """A chunk of a PNG file is changed, repeated, removed or added, with its sum."""
    if not data.startswith(b"\x89PNG"):
        return number(rng, data)
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((bytes(data[at + 4 : at + 8]), bytes(data[at + 8 : at + 8 + length])))
        at += 12 + length
    place, kind = int(rng.integers(len(chunks))), int(rng.integers(6))
    name, held = chunks[place]
    if kind == 0 and held:
        chunks[place] = name, bytes(number(rng, bytearray(held)))
    elif kind == 1:
        chunks.insert(place, chunks[place])
    elif kind == 2:
        del chunks[place]
    elif kind == 3:
        chunks.insert(1, (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26))))
    elif kind == 4:
        chunks[1:1] = [(b"tEXt", b"a\0" + b"b" * 100)] * 20000
    else:
        side = int(rng.choice([0, 1, 16384, 16385, 2**31 - 1]))
        chunks[0] = b"IHDR", struct.pack(">II", side, int(rng.choice([1, side]))) + chunks[0][1][8:]
    out = bytearray(data[:8])
    for name, held in chunks:
        out += struct.pack(">I", len(held)) + name + held + struct.pack(">I", zlib.crc32(name + held))
    return out


def npy_header(rng: Rng, data: bytearray) -> bytearray:
    """The header of a .npy file is changed, and its length set right."""
    length = int.from_bytes(data[8:10], "little")
    text = data[10 : 10 + length].decode("latin-1")
    shapes = [
        "(2**40,)",
        "(1000000000000,)",
        "(-1, 3)",
        "(0,)",
        "(0, 9223372036854775807)",
        "(4294967296, 4294967296)",
        "()",
        "(True, 3)",
    ]
    shapes += ["(" * 2000 + ")" * 2000, "(1,) * 10", "'a'", "(" + "1, " * 400 + ")", "(3, 1000, 1000)"]
    types = [
        "'|O'",
        "'<f16'",
        "'<U1000000000'",
        "'V8'",
        "'<M8[s]'",
        "[('a', '<f4')]",
        "'<f4', 'x': 1",
        "'float64'",
        "None",
        "'>f8'",
        "'|b1'",
    ]
    kind = int(rng.integers(4))
    if kind == 0:
        text = text[: text.index("'shape': ") + 9] + str(rng.choice(shapes)) + ", }"
    elif kind == 1:
        text = "{'descr': " + str(rng.choice(types)) + text[text.index(", 'fortran") :]
    elif kind == 2:
        text = text.replace("False", str(rng.choice(["True", "1", "None", "[]", "'" + "a" * 60000 + "'"])))
    else:
        text = word(rng, bytearray(text.encode())).decode("latin-1")[:65000]
    return data[:8] + len(text).to_bytes(2, "little") + text.encode("latin-1", "replace") + data[10 + length :]


def _head_of_text(change) -> Callable[[Rng, bytearray], bytearray]:
    """A mutation of the header of a .ply file."""

    def mutation(rng: Rng, data: bytearray) -> bytearray:
        end = data.find(b"end_header\n") + 11
        return change(rng, data[:end]) + data[end:]

    mutation.__name__ = f"ply_{change.__name__}"
    return mutation


PLY_LINES = [
    "element vertex 1000000000", "element vertex -1", "element x 999999999999999999", "element face 10", "property float x",
    "comment x", "property list uchar int vertex_indices", "property list int int x", "property list char float y",
    "property double f_dc_0", "property uchar x", "property x y", "element", "format ascii 1.0",
    "format binary_big_endian 1.0", "format x 2", "obj_info x", "end_header", "property list",
    "element vertex 99999999999999999999999", "element vertex 5", "property float " + "a" * 5000,
]  # fmt: skip


@_text
def ply_line(rng: Rng, text: str) -> str:
    """A line more, or in place of another one, in the header of a .ply file."""
    head, mark, rest = text.partition("end_header\n")
    lines = head.split("\n")
    at = int(rng.integers(1, len(lines)))
    lines[at : at + int(rng.integers(2))] = [str(rng.choice(PLY_LINES))] * int(rng.choice([1, 1, 2000]))
    return "\n".join(lines) + mark + rest


def _latin(change):
    """A text mutation of a file whose rest is binary."""

    def mutation(rng: Rng, data: bytearray) -> bytearray:
        end = data.find(b"end_header\n")
        if end < 0:
            return data
        return change(rng, data[: end + 11]) + data[end + 11 :]

    mutation.__name__ = change.__name__
    return mutation


# What befalls a file of a form beside its bytes, and how often.
FORMS: dict[str, list] = {
    "bytes": [],
    "yaml": TEXT * 2,
    "json": TEXT * 2,
    "safetensors": [_json_header(change) for change in (word, digits, exchange, line_again, nested, flip)] + [overlapping] * 6,
    "zip": [entry_changed] * 8 + [entry_bomb] * 2 + [entries_moved] * 3 + [directory] * 4,
    "npz": [entry_changed] * 6 + [entry_bomb] * 3 + [entries_moved] * 2 + [directory] * 4,
    "npy": [npy_header] * 8,
    "csv": [word, digits, exchange, line_again, line_less, lines_swapped, many],
    "ply": [_latin(ply_line)] * 6 + [_head_of_text(change) for change in (word, digits, exchange, line_again, line_less)],
    "picture": [chunk] * 4 + [number] * 4,
}
NAMES = sorted({change.__name__ for change in [*BYTES, *(change for changes in FORMS.values() for change in changes)]})


def mutate(rng: Rng, sample: bytes, form: str) -> tuple[bytes, list[str]]:
    """A file to which one to three things happen, and their names. What fits its form happens first: it needs a whole file."""
    changes, done, data = FORMS[form], [], bytearray(sample)
    if changes and rng.random() < 0.6:
        change = changes[int(rng.integers(len(changes)))]
        data = change(rng, data)
        done.append(change.__name__)
    for _ in range(int(rng.choice([0, 1, 2])) if done else int(rng.choice([1, 1, 2, 3]))):
        change = BYTES[int(rng.integers(len(BYTES) - 1)) if rng.random() < 0.97 else -1]
        data = change(rng, data)
        done.append(change.__name__)
    return bytes(data), done
