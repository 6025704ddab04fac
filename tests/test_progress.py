"""progress.py: bars on terminals, and seldom a line where standard error is a file."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from tqdm import tqdm

from pix2seq_hf import progress

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to."""
    seconds = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: seconds[0])
    return seconds


def test_short_work_writes_nothing_into_a_log(clock, capsys):
    with progress.open_bar(1000, "picture") as bar:
        for _ in range(1000):
            clock[0] += 0.0149
            bar.set_description("first pictures")
            bar.set_postfix_str("3 objects")
            bar.update()
    assert capsys.readouterr().err == ""


def test_long_work_writes_whole_lines_now_and_then_and_a_last_one(clock, capsys):
    with progress.open_bar(100, "picture", "val2017") as bar:
        for number in range(100):
            clock[0] += 1
            bar.update()
            bar.set_postfix_str(f"{number} objects")
        clock[0] += 1
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert "\r" not in text and text.endswith("\n")
    assert [line.split()[2] for line in lines] == [f"{number}/100" for number in (15, 30, 45, 60, 75, 90, 100)]
    assert lines[0].startswith("val2017:  15% 15/100 [00:15<01:25") and "1.00picture/s" in lines[0]
    assert lines[-1].endswith("99 objects]")


def test_work_of_unknown_length_that_ends_between_two_lines(clock, capsys):
    with progress.open_bar(None, "picture") as bar:
        for seconds in (14, 2, 3):
            clock[0] += seconds
            bar.update()
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["2picture", "3picture"]


def test_what_is_hidden_writes_nothing(clock, capsys):
    with progress.open_bar(2, "picture", is_shown=False) as bar:
        clock[0] += 100
        bar.update(2)
    assert capsys.readouterr().err == ""


def test_messages_between_lines_stay_whole(clock, capsys):
    with progress.open_bar(10, "step") as bar:
        clock[0] += 20
        bar.update(5)
        tqdm.write("loss is not finite", file=sys.stderr)
        clock[0] += 20
        bar.update(5)
    text = capsys.readouterr().err
    first, message, last = text.splitlines()
    assert (first.split()[1], message, last.split()[1]) == ("5/10", "loss is not finite", "10/10")
    assert "\r" not in text


def test_a_terminal_gets_a_bar():
    """Really a terminal: a process of its own on the far end of a pseudo-terminal."""
    code = "from pix2seq_hf.progress import open_bar\nwith open_bar(3, 'picture') as bar: bar.update(3)"
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen([sys.executable, "-c", code], stderr=theirs) as process:
        os.close(theirs)
        text = b""
        while True:
            try:
                block = os.read(ours, 1024)
            except OSError:  # the other end is closed
                block = b""
            if not block:
                break
            text += block
        assert process.wait(60) == 0
    os.close(ours)
    assert (b"\r" in text and b"100%" in text and "█".encode() in text) or b"#" in text


def test_every_bar_of_the_package_comes_from_here():
    folders = (ROOT / "src", ROOT / "conversion", ROOT / "benchmarks")
    files = [path for folder in folders for path in folder.rglob("*.py")]
    users = {path.name for path in files if re.search(r"^\s*(from|import) tqdm", path.read_text("utf-8"), re.MULTILINE)}
    assert users == {"progress.py", "loop.py"}  # the loop writes its messages between the lines of its bar
