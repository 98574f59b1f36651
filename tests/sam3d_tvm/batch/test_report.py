"""Tables of results: equal bytes, names of any kind, no network."""

import csv
import io
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from sam3d_tvm.batch.report import Report, page, results_table, seconds_table
from sam3d_tvm.batch.tasks import FAILED, OK, Row, failed

HOSTILE = "a<b>&\"'%2F#?;é"


class Links(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.links, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def row(name: str = "lamp", **values) -> Row:
    return Row(name, OK, voxels=1234, folder=name, files=("mesh.glb", "photo.png", "views.png"), **values)


def test_a_page_shows_names_of_any_kind_and_needs_no_network(tmp_path):
    found = row(HOSTILE, watertight=False, triangles=5)
    for name in found.files:
        (tmp_path / HOSTILE).mkdir(exist_ok=True)
        (tmp_path / HOSTILE / name).touch()
    text = page([found, Row("<script>", FAILED, error="<img src=x>", photo="<p>")], 3).decode()
    seen = Links(text)
    assert "script" not in seen.tags and "p" in seen.tags and seen.tags.count("img") == 2
    assert {"<script>", HOSTILE, "failed: <img src=x>", "<p>"} <= set(seen.texts)
    assert "1 of 3 objects, 1 failed, 1 to come" in seen.texts and "not watertight" in seen.texts
    files = [link for link in seen.links if link not in ("results.csv", "seconds.csv")]
    assert len(files) == 5 and all((tmp_path / unquote(link)).is_file() for link in files)
    assert all(link.startswith("./") for link in files) and "http" not in text


def test_rows_are_in_order_and_can_be_read_back(tmp_path):
    report = Report(tmp_path, 3)
    report.put(2, row("c", seconds={"image": 0.5, "voxels": 2}))
    report.put(0, row(HOSTILE, watertight=True))
    report.write()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text("utf-8"))))
    assert [found["name"] for found in rows] == [HOSTILE, "c"]
    assert rows[0]["watertight"] == "true" and rows[0]["voxels"] == "1234" and rows[0]["triangles"] == ""
    assert (tmp_path / "seconds.csv").read_text() == "name,stage,seconds\nc,image,0.500\nc,voxels,2.000\n"
    assert {path.name for path in tmp_path.iterdir()} == {"results.csv", "seconds.csv", "index.html"}


def test_seconds_are_in_a_file_of_their_own():
    slow, fast = (row(seconds={"image": value}) for value in (1.0, 2.0))
    assert results_table([slow]) == results_table([fast]) and page([slow], 1) == page([fast], 1)
    assert seconds_table([slow]) != seconds_table([fast])
    assert Row.from_json(slow.as_json()) == slow


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("mask: expected\n one"), "mask: expected one"),
        (MemoryError(), "out of memory"),
        (MemoryError("64 GiB"), "out of memory: 64 GiB"),
        (RuntimeError("odd"), "RuntimeError: odd"),
        (ValueError("caf\udce9"), "caf\\udce9"),
        ("a mask without a photo", "a mask without a photo"),
    ],
)
def test_what_went_wrong_is_one_line_of_text(error, says):
    found = failed(row(), error)
    assert (found.status, found.error) == (FAILED, says)
    results_table([found]), page([found], 1)


def test_many_objects_do_not_write_the_tables_each_time(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("sam3d_tvm.batch.report.write_bytes", lambda path, data: written.append(Path(path).name))
    clock = iter(range(10**6))  # each look at the clock is a second later, so that writing takes one
    monkeypatch.setattr("sam3d_tvm.batch.report.time.perf_counter", lambda: next(clock))
    report = Report(tmp_path, 200)
    for number in range(200):
        report.put(number, row(str(number)))
    report.write()
    assert 2 <= written.count("results.csv") < 10
