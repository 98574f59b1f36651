"""Runs golden files through their cases and reports how close every tensor came."""

import argparse
import json
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from tests.golden import CASES
from tests.golden.case import Case, Tensors, precision
from tests.tolerance import Comparison, compare

NARROW = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Report:
    """What came of one file: a row for each `mid.*` and `out.*` tensor, or the reason why there are none."""

    path: Path
    rows: tuple[Comparison, ...] = ()
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem and all(row.ok for row in self.rows)

    def table(self) -> str:
        """The report as text: tensor, shape, max error, relative L2 error, bound, verdict."""
        if self.problem:
            return f"{self.path}\n  FAILED: {self.problem}"
        cells = [("tensor", "shape", "max error", "rel L2", "bound", "")]
        cells += [
            (
                row.name,
                str(list(row.shape)),
                _figure(row.max_error),
                _figure(row.l2_error),
                _figure(row.bound),
                (row.note or "ok") if row.ok else f"FAILED: {row.problem}",
            )
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in cells) for column in range(5)]
        lines = [
            f"  {name:<{widths[0]}}  {shape:<{widths[1]}}  {error:>{widths[2]}}  {l2:>{widths[3]}}  "
            f"{bound:>{widths[4]}}  {verdict}".rstrip()
            for name, shape, error, l2, bound, verdict in cells
        ]
        failed = sum(not row.ok for row in self.rows)
        refused = sum(bool(row.note) for row in self.rows)
        good = (
            f"all {len(self.rows)} tensors ok" if not refused else f"{len(self.rows) - refused} tensors ok, {refused} refused"
        )
        verdict = f"{failed} of {len(self.rows)} tensors FAILED" if failed else good
        return "\n".join([str(self.path), *lines, f"  {verdict}"])


def case_of(path: Path) -> str:
    """The name of a file's case: its stem up to `__`."""
    return Path(path).stem.split("__")[0]


def check_file(path: Path) -> Report:
    """Runs one golden file. Whatever goes wrong is in the report; nothing is raised."""
    path = Path(path)
    case = CASES.get(case_of(path))
    if case is None:
        return Report(path, problem=f"no case {case_of(path)!r}; the known ones are {', '.join(sorted(CASES))}")
    try:
        tensors, config = read(path)
    except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
        return Report(path, problem=f"cannot be read: {error}")
    if not any(name.startswith("out.") for name in tensors):
        return Report(path, problem="holds no out.* tensor, so there is nothing to compare")
    try:
        rows = _rows(case, case.run(tensors, config), tensors, config)
        for way, actual, expected in case.ways(tensors, config):
            rows += [replace(row, name=f"{way}: {row.name}") for row in _rows(case, actual, expected, config)]
        return Report(path, tuple(rows))
    except Exception:
        return Report(path, problem=f"the case raised\n{traceback.format_exc()}")


def check_tensors(path: Path, case: Case, actual: Tensors, tensors: Tensors, config: dict) -> Report:
    """Compares what a case returned with the tensors of a file."""
    return Report(Path(path), tuple(_rows(case, actual, tensors, config)))


def _rows(case: Case, actual: Tensors, tensors: Tensors, config: dict) -> list[Comparison]:
    expected = sorted(name for name in tensors if name.startswith(("mid.", "out.")))
    return [_row(case, name, actual, tensors, config) for name in expected]


def read(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The tensors of a golden file and its `config`. ValueError if it has none that is an object."""
    if not Path(path).is_file():
        raise ValueError("no such file")
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    if "config" not in metadata:
        raise ValueError("its metadata has no 'config'")
    config = json.loads(metadata["config"])
    if not isinstance(config, dict):
        raise ValueError(f"its config is a {type(config).__name__}, expected an object")
    return tensors, config


def check_files(paths: Iterable[Path]) -> bool:
    """Runs the files, prints a table for each, and says whether all of them hold."""
    good = True
    for path in paths:
        report = check_file(path)
        print(report.table(), flush=True)
        good &= report.ok
    return good


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 if every file holds, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="Run golden files through their cases.")
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path, help="a .safetensors file in the golden format")
    return 0 if check_files(parser.parse_args(argv).files) else 1


def _row(case: Case, name: str, actual: Tensors, tensors: Tensors, config: dict) -> Comparison:
    if name not in actual:
        return _missing(name, tensors[name])
    if isinstance(actual[name], ValueError):  # what the library documents that it does not do
        return Comparison(name, tensors[name].shape, np.nan, np.nan, np.nan, note=f"refused: {actual[name]}")
    depth, scale = case.depth(name, tensors, config), case.scale(name, tensors, config)
    narrow = precision.get() != "float32" and tensors[name].dtype.kind == "f"
    dtype = NARROW[precision.get()] if narrow else None
    return compare(actual[name], tensors[name], depth, dtype=dtype, scale=scale, name=name)


def _missing(name: str, expected: np.ndarray) -> Comparison:
    return Comparison(name, expected.shape, np.nan, np.nan, np.nan, "the case did not produce it")


def _figure(value: float) -> str:
    return "-" if np.isnan(value) else "0" if value == 0 else f"{value:.2e}"
