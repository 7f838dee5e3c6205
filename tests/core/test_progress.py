"""Progress in a log file: whole lines, few of them, and one at the end; in a terminal a bar that ends on its line."""

from __future__ import annotations

import re
import sys

import pytest

from clear_core import progress


class Clock:
    """Goes on by ten seconds each time that it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10
        return self.now


def lines(total: int | None, items: object = None, leave: bool = True, desc: str = "") -> progress.Lines[int]:
    return progress.Lines(items, "step", total, 0, desc, leave, 30, Clock())


def test_lines_come_at_most_every_so_often_and_once_at_the_end(capsys):
    for _ in lines(None, range(100), desc="training"):
        pass
    out, err = capsys.readouterr()
    told = [int(line.split()[1]) for line in err.splitlines()]
    assert out == "" and "\r" not in err
    assert told == sorted(set(told)) and told[-1] == 100 and 10 < len(told) < 50
    assert re.fullmatch(r"training: 100 of 100 steps in \d+ s", err.splitlines()[-1])


def test_an_end_before_the_end_is_told(capsys):
    with pytest.raises(KeyboardInterrupt), lines(8) as bar:
        bar.update(3)
        bar.set_postfix_str("loss 0.5")
        raise KeyboardInterrupt
    assert re.fullmatch(r"stopped at 3 of 8 steps in \d+ s, loss 0.5\n", capsys.readouterr().err)


def test_what_is_refused_before_its_first_step_has_its_own_sentence_alone(capsys):
    with pytest.raises(ValueError), lines(8, leave=True):
        raise ValueError
    assert capsys.readouterr().err == ""


def test_a_bar_that_does_not_stay_leaves_no_line(capsys):
    for _ in lines(None, [1], leave=False):
        pass
    assert capsys.readouterr().err == ""


def test_a_bar_that_is_not_shown_writes_nothing_however_long_it_takes(capsys, monkeypatch):
    monkeypatch.setattr(progress, "BETWEEN_LINES", 0.0)
    assert list(progress.bar(iter("abc"), unit="step", shown=False)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    assert list(progress.bar("abc", unit="step")) == ["a", "b", "c"]
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_a_bar_counts_from_where_it_began_and_begins_again(capsys):
    with progress.bar(unit="call", total=5, initial=2) as bar:
        bar.update(2)
        assert (bar.n, bar.total) == (4, 5)
        bar.reset(9)
        assert (bar.n, bar.total) == (0, 9)
        bar.set_description("again")
    assert capsys.readouterr().err.startswith("again: 0 of 9 calls in ")


def test_a_bar_that_began_again_and_stops_says_how_far_it_came(capsys):
    with pytest.raises(KeyboardInterrupt), progress.bar(unit="call", total=5, initial=2) as bar:
        bar.reset(9)
        bar.update(2)
        raise KeyboardInterrupt
    assert capsys.readouterr().err.startswith("stopped at 2 of 9 calls in ")


def test_without_tqdm_a_terminal_gets_lines_too(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert isinstance(progress.bar([1], unit="step"), progress.Lines)


def test_in_a_terminal_it_is_a_bar_of_tqdm(capsys, monkeypatch):
    tqdm = pytest.importorskip("tqdm").tqdm
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.bar(range(3), unit="step", desc="drawing") as bar:
        assert isinstance(bar, tqdm)
        bar.set_description("drawn")
        assert list(bar) == [0, 1, 2]
    err = capsys.readouterr().err
    assert err.endswith("\n") and "drawn: 100%" in err
