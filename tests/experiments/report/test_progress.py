import io

from experiments.report import pictures, progress


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_come_now_and_then_with_rate_and_time_left():
    clock, stream = Clock(), io.StringIO()
    bar = progress.Progress("screen", 100, every_seconds=10, stream=stream, clock=clock)
    for clock.now in (1, 5, 20, 21):
        bar.advance(5, items=50)
    bar.close()
    assert stream.getvalue().splitlines() == [
        "screen 15 %  150 documents, 8/s  0:01:53 left",
        "screen 20 %  200 documents, 10/s  0:01:24 left",
    ]


def test_slow_work_has_a_rate_too_and_counts_what_it_is_told_to():
    clock, stream = Clock(), io.StringIO()
    bar = progress.Progress("lime", 40, items="mosaics", stream=stream, clock=clock)
    clock.now = 100
    bar.advance(2.5, items=2.5)
    bar.erase()
    assert stream.getvalue() == "lime 6 %  2 mosaics, 0.025/s  0:25:00 left\n"


def test_a_terminal_has_a_bar_that_ends_full():
    clock, stream = Clock(), Terminal()
    bar = progress.Progress("align", 4, stream=stream, clock=clock)
    for clock.now in (1, 2, 3, 4):
        bar.advance(1)
    bar.close()
    assert "█" * 12 + "░" * 12 + " align 50 %" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("█" * 24 + " align 100 %\x1b[K")


def test_more_than_the_whole_and_a_whole_of_nothing_are_full():
    stream = io.StringIO()
    progress.Progress("a", 0, stream=stream, clock=Clock()).close()
    bar = progress.Progress("b", 2, stream=stream, clock=Clock())
    bar.advance(5)
    bar.close()
    assert stream.getvalue().splitlines() == ["a 0 %", "b 100 %"]


def test_bars_and_histograms_are_drawn_with_their_captions(tmp_path):
    pictures.bars(tmp_path / "bars.png", {"in": 3, "after [url]": 2, "none": 0}, caption="What is left.", label="n")
    groups = {"before": {"low": 0, "high": 5, "counts": [1, 0, 4]}, "after": {"low": 0, "high": 5, "counts": [0, 0, 0]}}
    pictures.histograms(tmp_path / "levels.png", groups, caption="Scores.", label="level")
    for name, caption in (("bars", "What is left."), ("levels", "Scores.")):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert caption in (tmp_path / f"{name}.txt").read_text()
