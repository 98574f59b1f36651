"""Tables of what became of many photos: results.csv, seconds.csv and index.html, each whole at any time.

Equal inputs give equal bytes of results.csv and index.html, in whatever order objects are done; seconds are in a file apart.
"""

import csv
import html
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sam3d_tvm.batch.tasks import FAILED, Row
from sparse_ops.deploy.files import write_bytes

RESULTS, SECONDS, PAGE = "results.csv", "seconds.csv", "index.html"
THUMBNAIL, VIEWS, VOXELS = "photo.png", "views.png", "voxels.png"
SHARE = 0.02  # of the time at most that goes into writing tables while objects are computed

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
table { border-collapse: collapse }
td, th { border-bottom: 1px solid #ddd; padding: .5em .8em; text-align: left; vertical-align: top }
td.number { text-align: right } img { max-height: 160px; max-width: 480px; display: block } .failed { color: #b00 }
"""


COLUMNS = tuple(entry.name for entry in fields(Row) if entry.name not in ("files", "seconds", "evaluations"))


class Report:
    """The tables in a folder of results, for a known number of objects. OSError, which names the file, where one
    cannot be written."""

    def __init__(self, folder: Path, objects: int):
        self._folder, self._rows = folder, dict.fromkeys(range(objects))
        self._written, self._took = 0.0, 0.0

    @property
    def rows(self) -> list[Row]:
        """Those that there are so far."""
        return [row for row in self._rows.values() if row is not None]

    def put(self, number: int, row: Row) -> None:
        """The row of the object of that number. Tables are written unless that was done just now, as it takes time for many."""
        self._rows[number] = row
        if time.perf_counter() - self._written > self._took / SHARE:
            self.write()

    def write(self) -> None:
        begin = time.perf_counter()
        rows = self.rows
        write_bytes(self._folder / RESULTS, results_table(rows))
        write_bytes(self._folder / SECONDS, seconds_table(rows))
        write_bytes(self._folder / PAGE, page(rows, len(self._rows)))
        self._written = time.perf_counter()
        self._took = self._written - begin


def results_table(rows: Iterable[Row]) -> bytes:
    """A CSV of all columns but seconds, in UTF-8."""
    return _csv(COLUMNS, ([_cell(getattr(row, column)) for column in COLUMNS] for row in rows))


def seconds_table(rows: Iterable[Row]) -> bytes:
    """A CSV of name, stage and seconds, a line for each stage of each object; two runs are never equal in it."""
    return _csv(
        ("name", "stage", "seconds"),
        ((row.name, stage, f"{value:.3f}") for row in rows for stage, value in row.seconds.items()),
    )


def page(rows: Sequence[Row], total: int) -> bytes:
    """A page with a line for each object, that needs no network: pictures are files beside it."""
    failed = sum(row.status == FAILED for row in rows)
    said = f"{len(rows) - failed} of {total} objects" + (f", {failed} failed" if failed else "")
    if len(rows) < total:
        said += f", {total - len(rows)} to come"
    lines = "\n".join(_line(row) for row in rows)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{said}</title><style>{_STYLE}</style></head>
<body><h1>{said}</h1>
<p><a href="{RESULTS}">{RESULTS}</a>, <a href="{SECONDS}">{SECONDS}</a></p>
<table><thead><tr><th>object</th><th>photo and mask</th><th>result</th><th>voxels</th><th>Gaussians</th><th>triangles</th>
<th>files</th></tr></thead><tbody>
{lines}
</tbody></table></body></html>
""".encode()


def _line(row: Row) -> str:
    pictures = {name: _picture(row, name) for name in (THUMBNAIL, VIEWS, VOXELS) if name in row.files}
    links = " ".join(f'<a href="{_link(row, name)}">{html.escape(name)}</a>' for name in row.files if name not in pictures)
    result = pictures.get(VIEWS, "") + pictures.get(VOXELS, "")
    if row.status == FAILED:
        result = f'<span class="failed">failed: {html.escape(row.error)}</span>'
    triangles = _number(row.triangles) + (
        "" if row.watertight is None else "<br>watertight" if row.watertight else "<br>not watertight"
    )
    cells = [html.escape(row.name), pictures.get(THUMBNAIL, html.escape(row.photo)), result]
    numbers = [_number(row.voxels), _number(row.gaussians), triangles]
    return (
        f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}"
        f"{''.join(f'<td class=number>{cell}</td>' for cell in numbers)}<td>{links}</td></tr>"
    )


def _picture(row: Row, name: str) -> str:
    link = _link(row, name)
    return f'<a href="{link}"><img src="{link}" alt="{html.escape(f"{name} of {row.name}")}" loading="lazy"></a>'


def _link(row: Row, name: str) -> str:
    return html.escape(quote(f"./{row.folder}/{name}"))


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _cell(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _csv(header: Iterable[str], rows: Iterable[Iterable[str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()
