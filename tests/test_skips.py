"""What `.ci/run` says of skipped tests."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent / ".ci"
SPEC = importlib.util.spec_from_file_location("skips", FOLDER / "skips.py")
skips = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(skips)

REPORT = """<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite>
<testcase name="a"/>
<testcase name="b"><skipped type="pytest.skip" message="one thread only">x</skipped></testcase>
<testcase name="c"><skipped type="pytest.skip" message="one thread only">x</skipped></testcase>
<testcase name="d"><skipped type="pytest.skip" message="no such luck">x</skipped></testcase>
<testcase name="e"><skipped type="pytest.xfail" message="known">x</skipped></testcase>
</testsuite></testsuites>"""


def test_a_reason_that_no_list_names_fails(tmp_path, capsys):
    (tmp_path / "tests.xml").write_text(REPORT)
    (tmp_path / "list").write_text("# a comment\none thread .*\n")
    assert skips.main(str(tmp_path / "tests.xml"), str(tmp_path / "list")) == 1
    assert capsys.readouterr().out.startswith("skipped 1: no such luck  (in none of")
    (tmp_path / "more").write_text("no such luck\n")
    assert skips.main(str(tmp_path / "tests.xml"), str(tmp_path / "list"), str(tmp_path / "more")) == 0
    assert capsys.readouterr().out == "skipped 1: no such luck\nskipped 2: one thread only\n"


def test_a_reason_is_matched_in_whole():
    assert skips.unnamed(["one thread only, and more"], ["one thread only"]) == ["one thread only, and more"]


def test_what_pytest_writes_is_understood(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.skipif(True, reason='mark')\ndef test_a(): pass\n"
        "def test_b(): pytest.skip('call')\n"
        "@pytest.mark.xfail(reason='known')\ndef test_c(): assert False\n"
        "def test_d(): pass\n"
    )
    (tmp_path / "test_file.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", ".", "--junit-xml=tests.xml", "."]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    found = skips.reasons((tmp_path / "tests.xml").read_text())
    assert found == {"mark": 1, "call": 1, "could not import 'no_such_module': No module named 'no_such_module'": 1}


def test_without_a_report_nothing_is_known(tmp_path, capsys):
    assert skips.main(str(tmp_path / "none.xml")) == 1 and "not known" in capsys.readouterr().out


def test_the_lists_of_ci_are_expressions():
    for file in FOLDER.glob("skips*.txt"):
        listed = skips.patterns(file.read_text())
        assert listed
        for pattern in listed:
            re.compile(pattern)
