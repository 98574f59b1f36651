"""Notices: warnings, or what a listener hears, each once."""

import threading
import warnings

import pytest

from sam3d_tvm.notices import Notice, heard_by, say


def test_a_notice_is_a_warning_where_nobody_listens():
    with pytest.warns(Notice, match="taken as upright"):
        say("taken as upright")


def test_a_listener_hears_each_notice_once_and_nothing_is_warned_of():
    heard, inner = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with heard_by(heard.append):
            say("one")
            with heard_by(inner.append):
                say("two")
            say("one")
            say("three")
    assert heard == ["one", "three"] and inner == ["two"]
    with pytest.warns(Notice, match="four"):
        say("four")


def test_threads_have_listeners_of_their_own():
    heard, other = [], []

    def elsewhere():
        with heard_by(other.append):
            say("there")

    with heard_by(heard.append):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        say("here")
    assert heard == ["here"] and other == ["there"]
