"""What is refused before it is walked: JSON that is too large, too deep or ambiguous, headers that do not fit their file."""

import json
import os
import time

import numpy as np
import pytest

from sparse_ops.deploy import reading
from sparse_ops.deploy.files import save_safetensors
from sparse_ops.deploy.reading import parse_json, read_bytes, read_json, safetensors_header
from sparse_ops.deploy.weights import check_arrays, load_state


def test_json_is_read_as_it_is():
    value = {"a": [1, -(2**63), 2.5, None, True, "é", {"b": []}], "c": 2**63 - 1}
    assert parse_json(json.dumps(value), "x.json") == value
    assert parse_json("[" * 64 + "]" * 64, "x.json") is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 65 + "]" * 65, "at most 64 lists and objects inside of each other"),
        ("[" * 200_000, "at most 64 lists and objects inside of each other"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "at most 64 lists"),
        ("[" + "0," * 1_000_001 + "0]", "at most 1,000,000 values"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "expected every name once, given 'c' 2 times"),
        ("{" + ",".join(f'"{i}":0' for i in range(300_000)) + ',"7":1}', "expected every name once, given '7' 2 times"),
        (str(2**63), "integers within int64"),
        ("9" * 10_000, "integers within int64, given one of 10000 digits"),
        ("1e999", "finite numbers"),
        ("[NaN]", "finite numbers, given NaN"),
        (r'["\ud800"]', "expected whole characters, given half of one"),
        ("{", "expected JSON"),
        ("", "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
    ],
)
def test_json_that_is_refused_at_once(text, words):
    begin = time.process_time()
    with pytest.raises(ValueError, match=f"x.json: .*{words}"):
        parse_json(text, "x.json")
    assert time.process_time() - begin < 2


def test_names_that_no_terminal_should_see(tmp_path):
    save_safetensors(path := tmp_path / "w.safetensors", {"\x1b[31ma\n" + "b" * 500: np.ones(1, "f4")})
    with pytest.raises(ValueError, match=r"\\x1b\[31ma\\nb{100,}\.\.\.: not a parameter of this model") as caught:
        check_arrays({}, load_state(path))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_large_files_and_pipes_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "large.json").write_bytes(b" " * 101)
    monkeypatch.setattr(reading, "JSON_BYTES", 100)
    with pytest.raises(ValueError, match=r"large\.json: expected at most 100 bytes, given 101"):
        read_json(tmp_path / "large.json")
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("pipe.json", "none.json", "."):
        with pytest.raises(ValueError, match=r"expected a file, given|expected a file that can be read: .*No such file"):
            read_bytes(tmp_path / name, 10)


def header(tmp_path, change) -> str:
    """A .safetensors file whose header is changed, its length set right."""
    save_safetensors(path := tmp_path / "w.safetensors", {"a": np.ones((2, 3), "f4"), "b": np.ones(4, "f4"), "c": np.ones(0)})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = change(json.loads(data[8 : 8 + length]))
    text = (text if isinstance(text, str) else json.dumps(text)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


def entry(name: str, **values):
    return lambda found: found | {name: found[name] | values}


BROKEN = {
    "overlapping": (entry("b", data_offsets=[0, 16]), "one behind the other"),
    "a hole": (lambda found: {name: found[name] for name in ("b", "c")}, "one behind the other"),
    "less": (lambda found: {name: found[name] for name in ("a", "c")}, "bytes of arrays, as its header says"),
    "negative": (entry("b", data_offsets=[-16, 0]), "offsets within"),
    "beyond": (entry("b", data_offsets=[24, 2**62]), "offsets within"),
    "backwards": (entry("b", data_offsets=[40, 24]), "offsets within"),
    "shape": (entry("b", shape=[2**32, 2**32]), "'b': expected .* bytes for F32"),
    "negative shape": (entry("b", shape=[-1]), "a shape of at most 32 integers of 0 or more"),
    "bool shape": (entry("b", shape=[True]), "a shape of at most 32 integers"),
    "deep shape": (entry("b", shape=[1] * 33), "a shape of at most 32"),
    "dtype": (entry("b", dtype="F4"), "a dtype among"),
    "dtype of another size": (entry("b", dtype="F16"), "'b': expected 8 bytes for F16"),
    "more": (entry("b", more=1), "expected dtype, shape and data_offsets"),
    "no object": (lambda found: [found], "names and places of arrays"),
    "twice": (lambda found: json.dumps(found)[:-1] + ', "a": 1}', "every name once"),
    "deep": (lambda found: "[" * 100_000, "inside of each other"),
    "metadata": (lambda found: found | {"__metadata__": {"a": 1}}, "strings as metadata"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_header_that_does_not_fit(tmp_path, kind):
    change, words = BROKEN[kind]
    path = header(tmp_path, change)
    for read in (safetensors_header, load_state):
        with pytest.raises(ValueError, match=rf"w\.safetensors.*{words}"):
            read(path)


@pytest.mark.parametrize("length", [0, 7, 2**31, 2**63, 2**64 - 1])
def test_a_length_that_does_not_fit(tmp_path, length):
    path = header(tmp_path, lambda found: found)
    data = path.read_bytes()
    path.write_bytes(length.to_bytes(8, "little") + data[8:] if length > 7 else data[:length])
    with pytest.raises(ValueError, match=r"w\.safetensors: expected a .safetensors file, given"):
        safetensors_header(path)


def test_a_header_that_fits(tmp_path):
    found, start = safetensors_header(header(tmp_path, lambda found: found | {"__metadata__": {"a": "1"}}))
    assert found.keys() == {"a", "b", "c"} and start > 8
