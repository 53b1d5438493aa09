"""Progress away from a terminal is a few readable lines."""

import io
import os
import signal
import time

import pytest
from rich.console import Console

from indexer.terminal import BarProgress, LineProgress, aligned, and_time_left, counted, duration, progress_on, size


def test_lines_say_how_many_how_fast_and_how_long_still():
    stream = io.StringIO()
    with LineProgress(stream, seconds=0.05) as progress:
        progress.phase("sketching examples", 100, done=20)
        progress.advance(30)
        time.sleep(0.2)
        progress.note("a note")
        progress.phase("publishing", 0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "sketching examples: 80 to do, 20 done before"
    assert lines[1].startswith("sketching examples: 50 of 100 (50%), ")
    assert "/s, " in lines[1]
    assert lines[1].endswith(" left")
    assert "a note" in lines
    assert "publishing" in lines


def test_units_that_take_unlike_times_promise_no_time_left():
    stream = io.StringIO()
    with LineProgress(stream, seconds=0.05) as progress:
        progress.phase("deriving", 4, even=False)
        progress.advance(1)
        time.sleep(0.2)
    line = stream.getvalue().splitlines()[1]
    assert line.startswith("deriving: 1 of 4 (25%), ")
    assert line.endswith(" so far")
    assert "left" not in stream.getvalue()


@pytest.mark.parametrize(("count", "said"), [(0, "0 queries"), (1, "1 query"), (2, "2 queries")])
def test_one_of_something_is_not_plural(count, said):
    assert counted(count, "query", "queries") == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.34, "0.3 s"), (42.4, "42 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations_are_read_by_people(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(("done", "said"), [(1, ", 3 min 00 s left"), (3, ", 20 s left"), (4, "")])
def test_time_left_is_that_of_the_units_that_are_not_done(done, said):
    assert and_time_left(done, 4, 60.0) == said


@pytest.mark.parametrize(("count", "said"), [(512, "512 B"), (1_500_000, "1.4 MiB"), (3 << 40, "3.0 TiB")])
def test_sizes_are_read_by_people(count, said):
    assert size(count) == said


def test_columns_line_up():
    assert aligned([("a", "1"), ("long", "2")]) == "a     1\nlong  2"


def test_a_terminal_gets_a_bar_and_anything_else_lines():
    with progress_on(Console(file=io.StringIO(), force_terminal=True)) as progress:
        assert isinstance(progress, BarProgress)
        progress.phase("sketching", 10)
        progress.advance(5)
        progress.phase("publishing", 0)
        progress.note("a note")
    with progress_on(Console(file=io.StringIO())) as progress:
        assert isinstance(progress, LineProgress)


def test_the_first_interrupt_asks_to_stop_and_the_second_stops(capsys):
    before = signal.getsignal(signal.SIGINT)
    with progress_on(Console(file=io.StringIO())) as progress:
        os.kill(os.getpid(), signal.SIGINT)
        assert progress.stop_requested()
        assert "Ctrl-C again" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
