"""Prints the tests that were skipped, by reason; exits with 1 if a reason is in no list, or if there is nothing to read.

    python3 .ci/skips.py build/tests.xml .ci/skips.txt ...

A list has a regular expression a line, which a reason has to match in whole; lines that begin with # are comments.
"""

import ast
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from pathlib import Path


def reasons(report: str) -> Counter[str]:
    """How many tests, or whole files, were skipped for each reason, by the text of a JUnit XML report. Expected failures
    are none."""
    marks = [mark for mark in ElementTree.fromstring(report).iter("skipped") if mark.get("type") != "pytest.xfail"]
    return Counter(map(_reason, marks))


def _reason(mark: ElementTree.Element) -> str:
    if mark.get("message") == "collection skipped":  # a file: its text is the tuple (path, line, "Skipped: ...")
        return str(ast.literal_eval(mark.text or "")[2]).removeprefix("Skipped: ")
    return mark.get("message", "")


def patterns(text: str) -> list[str]:
    """The expressions of a list."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def unnamed(found: Iterable[str], listed: Iterable[str]) -> list[str]:
    """The reasons that no expression matches."""
    listed = list(listed)
    return sorted(reason for reason in found if not any(re.fullmatch(pattern, reason) for pattern in listed))


def main(report: str, *lists: str) -> int:
    if not Path(report).is_file():
        print(f"skipped tests are not known: no {report}")
        return 1
    found = reasons(Path(report).read_text("utf-8"))
    strange = unnamed(found, [pattern for file in lists for pattern in patterns(Path(file).read_text("utf-8"))])
    for reason, count in sorted(found.items()):
        print(f"skipped {count}: {reason}" + (f"  (in none of {', '.join(lists)})" if reason in strange else ""))
    if not found:
        print("nothing was skipped")
    return 1 if strange else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
