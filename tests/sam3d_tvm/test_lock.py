"""A lock of processes: one at a time, others wait and say so, and whoever is killed lets go of it."""

import errno
import subprocess
import sys

import pytest

from sam3d_tvm import lock
from sam3d_tvm.lock import locked, wait_while_held

HOLD = """
import sys, time
from pathlib import Path
from sam3d_tvm.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(file, seconds: float) -> subprocess.Popen:
    """A process that holds the lock of `file`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(file), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    process, waited = holder(tmp_path / "new" / "lock", 600), []
    try:
        # Told after a second; then the process is killed.
        with locked(tmp_path / "new" / "lock", on_wait=lambda: (waited.append("told"), process.kill())) as held:
            assert held and waited == ["told"]
    finally:
        process.kill()
        process.communicate()


def test_who_only_reads_waits_without_a_lock(tmp_path):
    assert not wait_while_held(tmp_path / "lock")
    process = holder(tmp_path / "lock", 0.5)
    assert wait_while_held(tmp_path / "lock", on_wait=lambda: pytest.fail("told before a second"))
    assert process.wait(60) == 0
    assert not wait_while_held(tmp_path / "lock")


def test_a_lock_whose_file_was_removed_is_not_the_one(tmp_path):
    process = holder(tmp_path / "lock", 600)
    try:
        (tmp_path / "lock").unlink()
        with locked(tmp_path / "lock") as held:
            assert held and lock._is_held(tmp_path / "lock")
    finally:
        process.kill()
        process.communicate()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def none(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    with locked(tmp_path / "lock") as held:
        assert not held
    assert not wait_while_held(tmp_path / "lock")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OSError, match="taken"), locked(tmp_path / "taken" / "lock"):
        pass
