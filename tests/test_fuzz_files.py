"""The campaign of files: a fixed part of it, and that it finds crashes, hangs, memory, and words that name nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz_files import __main__ as main
from tests.fuzz_files import work
from tests.fuzz_files.kinds import KINDS
from tests.fuzz_files.mutations import FORMS, mutate

ROOT = Path(__file__).parent.parent
SEED, CASES = 7, 330


def test_a_fixed_part_of_the_campaign():
    report = main.run(SEED, print, cases=CASES)
    print(report)
    assert report.cases == CASES and not report.failures
    assert {*report.counts["files"]} == {kind.name for kind in KINDS}


def test_every_kind_is_read_whole_and_refused_when_it_is_empty():
    for kind in KINDS:
        assert [work.one(kind, sample) for sample in kind.samples()] == ["read"] * len(kind.samples()), kind.name
        assert work.one(kind, b"") == "refused" or kind.name == "splat splat"  # which then has no Gaussians


def test_a_case_follows_from_two_numbers():
    for index in range(2 * len(KINDS)):
        (kind, data, done), again = work.draw(3, index), work.draw(3, index)
        assert (kind, data, done) == again and kind is KINDS[index % len(KINDS)]


@pytest.mark.parametrize("form", FORMS)
def test_mutations_change_a_file(form):
    import numpy as np

    kind = next((kind for kind in KINDS if kind.form == form), KINDS[0])
    samples = [mutate(np.random.default_rng(index), kind.samples()[0], form)[0] for index in range(20)]
    assert sum(sample != kind.samples()[0] for sample in samples) > 15


PLANTED = """
import os, time
import numpy as np
from tests.fuzz_files import kinds

def fails(error):
    raise error

def wrong(name, read):
    def after_the_first(file):  # which is whole, and read before cases are
        if file.read_bytes() != b"123456":
            read(file)
    kinds.KINDS.append(kinds.Kind(name, "bytes", lambda: (b"123456",), kinds._alone("file.bin"), after_the_first))

kinds.KINDS.clear()
wrong("crash", lambda file: os.abort())
wrong("hang", lambda file: time.sleep(600))
wrong("other", lambda file: fails(KeyError("a name")))
wrong("nameless", lambda file: fails(ValueError("something is wrong")))
wrong("memory", lambda file: np.ones(1 << 29))
wrong("advice", lambda file: fails(ValueError(f"{file.name}: load it with weights_only=False")))
wrong("right", lambda file: fails(ValueError(f"{file.name}: expected another one")))
"""


def test_what_is_wrong_is_found_and_its_line_finds_it_again(tmp_path, monkeypatch):
    (tmp_path / "planted_files.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(work, "PATIENCE", 3.0)
    report = main.run(1, print, cases=7, plant="planted_files")
    words = ["exit code -6", "hangs", "KeyError", "does not name file.bin", "emory", "advice that is unsafe"]
    assert [case for case, _ in report.failures] == [f"1:{index}" for index in range(6)]
    for (_, found), expected in zip(report.failures, words, strict=True):
        assert expected in found
    assert report.counts["ended"] == {"right refused": 1}
    line = report.line("1:2")
    assert line == "python -m tests.fuzz_files --case 1:2 --plant planted_files"
    command = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from tests.fuzz_files.__main__ import main; "
    done = subprocess.run(
        [sys.executable, "-c", command + f"sys.exit(main({line.split()[3:]}))"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1 and "KeyError" in done.stdout, done.stderr
