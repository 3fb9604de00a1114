"""The reporter: talk on stderr, lines where there is no terminal, and a bar where there is one."""

from __future__ import annotations

import io
import re

import pytest

from sagittal.cli.terminal import Terminal, is_terminal


class Screen(io.StringIO):
    """A stream that says that a person watches it."""

    def isatty(self) -> bool:
        return True


def test_what_is_said_is_one_line() -> None:
    stream = io.StringIO()
    Terminal(stream=stream).say("one [bold]line[/bold]")
    assert stream.getvalue() == "one [bold]line[/bold]\n"


def test_quiet_says_nothing() -> None:
    stream = Screen()
    terminal = Terminal(quiet=True, stream=stream)
    terminal.say("hello")
    with terminal.track("train", 2) as advance:
        advance(1, "loss 1")
        advance(1, "loss 0")
    assert stream.getvalue() == ""


def test_without_a_terminal_each_new_note_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))  # a second passes at each look
    monkeypatch.setattr("sagittal.cli.terminal.time.monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    with Terminal(stream=stream, every_s=1).track("train", 4) as advance:
        advance(1, "auc 0.5")
        advance(1, "")
        advance(1, "auc 0.5")
        advance(0, "auc 0.7")
        advance(1, "")
    lines = [line.split("  ")[:2] for line in stream.getvalue().splitlines()]
    assert lines == [["train 1/4", "auc 0.5"], ["train 3/4", "auc 0.7"], ["train 4/4", "auc 0.7"]]
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_without_a_terminal_lines_do_not_come_thick() -> None:
    stream = io.StringIO()
    with Terminal(stream=stream, every_s=60).track("train", 1000) as advance:
        for n in range(1000):
            advance(1, f"loss {n}")
    assert len(stream.getvalue().splitlines()) == 1  # the end alone


def test_lines_tell_pace_and_end() -> None:
    stream = io.StringIO()
    with Terminal(stream=stream, every_s=0).track("train", 4) as advance:
        advance(1, "a")
    assert re.search(r"train 1/4  a  [\d.e+-]+ m?s each, ends \d\d:\d\d:\d\d \(in ", stream.getvalue())


def test_parts_of_the_time_are_a_percentage() -> None:
    stream = io.StringIO()
    with Terminal(stream=stream, every_s=0).track("train", 10) as advance:
        advance(2.5, "a")
        advance(7.5, "b")
    first, last = stream.getvalue().splitlines()
    assert first.startswith("train 25%  a  ends ")
    assert last == "train 100%  b"


def test_a_terminal_gets_one_bar_for_nested_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Screen()
    terminal = Terminal(stream=stream)
    with terminal.track("outer", 2) as outer:
        terminal.say("said [in between]")
        with terminal.track("inner", 5) as inner:
            inner(5, "auc 0.9")
        outer(2, "")
    shown = stream.getvalue()
    assert "outer" in shown
    assert "said [in between]" in shown
    assert shown.count("\x1b[?25h") == 1  # the cursor comes back once: one display


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Screen()
    with Terminal(stream=stream).track("train", 2) as advance:
        advance(1, "auc 0.9")
    assert not re.search(r"\x1b\[[\d;]*3\d(;\d+)*m", stream.getvalue())


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(Screen())


def test_a_bar_is_taken_down_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Screen()
    terminal = Terminal(stream=stream)
    with pytest.raises(ValueError, match="stop"), terminal.track("train", 2):
        raise ValueError("stop")
    terminal.say("after")
    assert stream.getvalue().endswith("after\n")
