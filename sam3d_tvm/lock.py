"""A lock that processes share. The kernel keeps it for an open file, and takes it back when the process dies, in any way."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)  # of file systems, such as some of a network
SAY_AFTER = 1.0  # seconds
LONGEST_NAP = 0.2


@contextmanager
def locked(file: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Holds the lock of `file`, which is made, with its folder, and stays: threads and processes that hold it take turns.

    `on_wait` is told once, after a second of waiting. Yields False where the file system has no locks: nothing is held then.
    OSError where the file cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    begin, said = time.monotonic(), False
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)  # not inherited by processes that are started meanwhile
        try:
            held = _try(handle)
            # Someone may have removed the folder, and the next one made another file: that one counts.
            if held is False or (held and _same(handle, file)):
                yield held
                return
        finally:
            os.close(handle)
        if not said and time.monotonic() - begin > SAY_AFTER:
            said = True
            on_wait()
        if held is None:
            time.sleep(min(LONGEST_NAP, 0.01 + (time.monotonic() - begin) / 10))


def wait_while_held(file: Path, on_wait: Callable[[], None] = lambda: None) -> bool:
    """Waits for those who hold the lock of `file`. False, at once, where nobody does, or where nothing can be held."""
    begin, said, waited = time.monotonic(), False, False
    while _is_held(file):
        waited = True
        if not said and time.monotonic() - begin > SAY_AFTER:
            said = True
            on_wait()
        time.sleep(LONGEST_NAP)
    return waited


def _is_held(file: Path) -> bool:
    try:
        handle = os.open(file, os.O_RDONLY)
    except OSError:  # there is none
        return False
    try:
        return _try(handle) is None
    finally:
        os.close(handle)


def _try(handle: int) -> bool | None:
    """True: the lock is held until the handle is closed. None: another one holds it. False: there are no locks here."""
    try:
        if os.name == "nt":
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            return None
        raise
    return True


def _same(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False
