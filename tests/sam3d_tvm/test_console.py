"""What the command line shows: lines elsewhere than on a terminal, notes, and streams that are closed."""

import os
import subprocess
import sys
import time
import warnings

import pytest

from sam3d_tvm import console
from sam3d_tvm.notices import say

SHOW = """
import sys, warnings
from sam3d_tvm import console
with console.steady_streams(), console.without_warnings("--verbose" in sys.argv), console.bars() as tell:
    tell("structure", 0, 2)
    warnings.warn("of a library")
    print("of a library", file=sys.stderr)
    tell("structure", 2, 2)
console.output().print("a result")
"""


def test_a_line_when_a_stage_begins_and_one_when_it_ends(capsys):
    with console.bars() as tell:
        tell("image", 0, 1)
        tell("image", 1, 1)
        for done in range(6):
            tell("structure", done, 5)
    assert capsys.readouterr() == ("", "image ...\nimage: done in 0:00:00\nstructure ...\nstructure: done in 0:00:00\n")


def test_a_line_a_minute_with_the_time_that_is_left(capsys, monkeypatch):
    monkeypatch.setattr(console, "MINUTE", 0.2)
    with console.bars() as tell:
        tell("structure", 0, 25)
        time.sleep(0.35)
        tell("structure", 5, 25)
        time.sleep(0.35)
        tell("structure", 25, 25)
        tell("mesh", 0, 1)  # of which nothing is told until it ends
        time.sleep(0.35)
        tell("mesh", 1, 1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "structure ..." and lines[1] == "structure: 0 of 25, 0:00:00 so far, time left unknown"
    assert any(line.startswith("structure: 5 of 25, 0:00:0") and " so far, about 0:00:0" in line for line in lines), lines
    assert "mesh: 0:00:00 so far" in lines and len(lines) < 12


def test_the_time_that_is_left(monkeypatch):
    monkeypatch.setattr(console.time, "monotonic", lambda: 1000.0)
    stage = console._Stage("latents", 25)
    stage.done = 5
    monkeypatch.setattr(console.time, "monotonic", lambda: 1000.0 + 3700)
    assert stage.line() == "latents: 5 of 25, 1:01:40 so far, about 4:06:40 left"


def test_notices_are_lines_and_foreign_warnings_are_not_shown(capsys):
    with console.without_warnings(False), console.bars():
        say("points:\n of OpenCV")
        say("points:\n of OpenCV")
        warnings.warn("of a library", stacklevel=1)
    assert capsys.readouterr() == ("", "note: points: of OpenCV\n")


@pytest.mark.parametrize("verbose", [False, True])
def test_what_libraries_print(verbose):
    command = [sys.executable, "-c", SHOW, *(["--verbose"] if verbose else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "a result\n"
    assert done.stderr.startswith("structure ...\n") and done.stderr.endswith("structure: done in 0:00:00\n")
    assert ("of a library" in done.stderr) == verbose


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
@pytest.mark.parametrize(("term", "codes"), [("xterm-256color", True), ("dumb", False)])
def test_a_terminal(term, codes):
    ours, theirs = os.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": term, "COLUMNS": "60"}
    process = subprocess.Popen([sys.executable, "-c", SHOW], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        if not data:
            break
        shown += data
    os.close(ours)
    assert process.wait(60) == 0
    assert b"structure" in shown and b"a result" in shown and b"library" not in shown
    assert (b"\x1b" in shown) == codes
    assert b"\x1b" in shown or all(len(line) <= 60 for line in shown.splitlines())


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_no_color():
    """Errors are red on a terminal, unless somebody wants no colours."""
    script = "from sam3d_tvm.console import say_error; say_error('wrong')"
    for value, codes in (("", True), ("1", False)):
        ours, theirs = os.openpty()
        environment = os.environ | {"TERM": "xterm", "NO_COLOR": value}
        environment.pop("FORCE_COLOR", None)
        subprocess.run([sys.executable, "-c", script], stderr=theirs, env=environment, check=True, timeout=60)
        os.close(theirs)
        shown = os.read(ours, 4096)
        os.close(ours)
        assert b"wrong" in shown and (b"\x1b[31m" in shown) == codes
