"""The progress of a run: a bar in a terminal, lines elsewhere, nothing with --quiet."""

import io
import re
from types import SimpleNamespace

import pytest
import small_tasks

from lqconvert.cli.progress import Bar, Lines, shown
from lqconvert.utils.terminal import Console

LINE = re.compile(r"^step (\d+)/6  validation 0\.\d{4}  ~[\d,]+ bytes(  \d+:\d\d:\d\d left)?$", re.MULTILINE)


def look(step):
    return SimpleNamespace(steps=1000, evaluation=SimpleNamespace(step=step, score=0.9751, bytes=12345))


@pytest.mark.slow
def test_without_a_terminal_every_look_is_a_line(tmp_path):
    """And nothing is said with --quiet: see test_plan.py."""
    result, _ = small_tasks.quantized(tmp_path, 2, *small_tasks.made("regression", tmp_path))
    assert result.exit_code == 0, result.output
    assert [int(match[1]) for match in LINE.finditer(result.stderr)] == [0, *range(7)]


def test_a_line_every_half_a_minute_where_looks_are_far_apart():
    now, said = [0.0], []
    lines = Lines(said.append, clock=lambda: now[0])
    lines.progress(look(0))
    for step in range(1, 101):
        now[0] += 1
        lines.tick(step, 1000)
    lines.progress(look(100))
    seen = "validation 0.9751  ~12,345 bytes"
    assert said == [
        f"step 0/1,000  {seen}",
        f"step 30/1,000  {seen}  0:16:10 left",
        f"step 60/1,000  {seen}  0:15:40 left",
        f"step 90/1,000  {seen}  0:15:10 left",
        f"step 100/1,000  {seen}  0:15:00 left",
    ]


def test_a_resumed_run_does_not_count_the_steps_before():
    now, said = [0.0], []
    lines = Lines(said.append, clock=lambda: now[0])
    for step in (500, 600):
        now[0] += 50
        lines.tick(step, 1000)
    assert said == ["step 500/1,000", "step 600/1,000  0:03:20 left"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "term", "kind"),
    [(Terminal, "xterm", Bar), (Terminal, "dumb", Lines), (io.StringIO, "xterm", Lines)],
)
def test_a_bar_is_for_terminals(stream, term, kind, monkeypatch):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as some CI systems do
    screen = stream()
    monkeypatch.setattr("sys.stderr", screen)
    console = Console(stderr=True, soft_wrap=True)
    with shown(console, console.print) as view:
        assert type(view) is kind
        view.progress(look(100))
        view.tick(150, 1000)
    assert "step 100/1,000" in screen.getvalue()
