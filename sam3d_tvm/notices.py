"""Notices: what is worth saying of an input that was taken, as how it was understood. Warnings, unless somebody listens.

with heard_by(print):
    pipeline.generate("photo.jpg", "mask.png")  # prints each notice once
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Notice(UserWarning):
    """How an input was understood where it could have been meant otherwise."""


_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def say(message: str) -> None:
    """Tells it whoever listens, or else warns of it."""
    listener = _listener.get()
    if listener is None:
        warnings.warn(message, Notice, stacklevel=2)
    else:
        listener(message)


@contextmanager
def heard_by(listener: Callable[[str], None]) -> Iterator[None]:
    """`listener` is told every notice of the block, in this thread, each once, in place of a warning."""
    heard = set()

    def once(message: str) -> None:
        if message not in heard:
            heard.add(message)
            listener(message)

    token = _listener.set(once)
    try:
        yield
    finally:
        _listener.reset(token)
