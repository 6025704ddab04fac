"""completion.py: what bash, fish and zsh themselves offer after words of a command line."""

import fcntl
import os
import select
import shutil
import struct
import subprocess
import termios
import time

import pytest

from pix2seq_hf import TASKS, cli, completion
from pix2seq_hf.conversion.released import RELEASED
from pix2seq_hf.training.recipes_command import list_files

BASH_ASKS = """\
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_pix2seq
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def commands():
    return completion.list_commands()


def write_script(commands, shell, folder):
    path = folder / f"completion.{shell}"
    path.write_text(getattr(completion, f"{shell}_script")(*commands), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def complete(commands, tmp_path_factory):
    """`complete("predict", "--ta")`: what bash offers, in a folder with a folder `runs`, and `new.yaml`."""
    script = write_script(commands, "bash", tmp_path_factory.mktemp("script"))
    folder = tmp_path_factory.mktemp("here")
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "new.yaml").touch()

    def ask(*words):
        arguments = ["bash", "--norc", "-c", BASH_ASKS, "bash", script, "pix2seq", *words]
        done = subprocess.run(arguments, capture_output=True, text=True, cwd=folder, check=True)
        assert not done.stderr
        return done.stdout.split()

    return ask


def test_bash_completes_commands(complete):
    assert complete("") == list(cli.COMMANDS)
    assert complete("pred") == ["predict", "predict-dataset"]
    assert complete("--v") == ["--version"]
    assert complete("data", "") == ["inspect", "convert", "scenes"]
    assert complete("data", "s") == ["scenes"]
    assert complete("nonsense", "") == []


def test_bash_completes_every_option_of_every_command(complete, commands):
    for name, options in commands[0].items():
        flags = {flag for option in options for flag in option.names}
        offered = complete(*name.split(), "--")
        if name != "data":
            assert set(offered) == {flag for flag in flags if flag.startswith("--")}, name
    assert complete("data", "scenes", "--co") == ["--count"]
    assert complete("predict", "street.jpg", "--model", "runs", "--thr") == ["--threshold"]


def test_bash_completes_values(complete):
    assert complete("predict", "--tasks", "cap") == ["captioning"]
    assert complete("predict", "--tasks", "captioning,key") == ["captioning,keypoint_detection"]
    assert complete("predict", "--tasks", "=", "cap") == ["captioning"]  # as bash cuts up --tasks=cap
    assert set(complete("predict", "--tasks=")) <= {"--tasks"}
    assert set(complete("evaluate", "--tasks", "=")) == {"all", *TASKS}
    assert complete("evaluate", "--engine", "f") == ["faster-coco-eval"]
    assert complete("train", "--recipe", "coco_vit_b") == [name for name in list_files() if "coco_vit_b" in name]
    assert complete("train", "--recipe", "n") == ["new.yaml"]
    assert complete("recipes", "accelerate/dd") == ["accelerate/ddp"]
    assert set(complete("convert", "--checkpoint", "multi")) == {name for name in RELEASED if name.startswith("multi")}
    assert complete("completion", "") == list(completion.SHELLS)
    assert complete("predict", "--threshold", "") == []


def test_bash_completes_several_values_and_arguments(complete):
    assert complete("benchmark", "--dtype", "float32", "b") == ["bfloat16"]
    assert complete("predict", "--model", "") == ["runs"]  # folders
    assert complete("predict", "--model", "runs/") == ["runs/mine"]
    assert set(complete("predict", "")) == {"runs", "new.yaml"}
    assert set(complete("predict", "--greedy", "")) == {"runs", "new.yaml"}
    assert set(complete("predict", *["--model", "runs"], *["a.jpg"] * 12, "")) == {"runs", "new.yaml"}


def test_bash_reads_files_with_blanks_as_one(complete, tmp_path, commands):
    (tmp_path / "two words.jpg").touch()
    script = write_script(commands, "bash", tmp_path)
    words = ["bash", "--norc", "-c", BASH_ASKS, "bash", script, "pix2seq", "predict", "two"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "two words.jpg\n"


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes(commands, tmp_path):
    script = write_script(commands, "fish", tmp_path)
    (tmp_path / "runs").mkdir()
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}

    def ask(line):
        words = ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=True, env=environment)
        assert not done.stderr
        return [entry.partition("\t")[0] for entry in done.stdout.splitlines()]

    assert set(ask("pix2seq ")) == set(cli.COMMANDS)
    assert ask("pix2seq data s") == ["scenes"]
    assert ask("pix2seq predict --thr") == ["--threshold"]
    assert ask("pix2seq data scenes --cou") == ["--count"]
    assert ask("pix2seq evaluate --engine f") == ["faster-coco-eval"]
    assert ask("pix2seq predict --tasks captioning,key") == ["captioning,keypoint_detection"]
    assert ask("pix2seq predict --model ru") == ["runs/"]
    assert "overfit" in ask("pix2seq train --recipe over")


def read_until(terminal, text, seconds=20):
    """What a terminal shows, up to `text`."""
    shown, end = "", time.monotonic() + seconds
    while text not in shown and select.select([terminal], [], [], max(0, end - time.monotonic()))[0]:
        shown += os.read(terminal, 65536).decode(errors="replace")
    assert text in shown, shown
    return shown


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes(commands, tmp_path):
    """In a terminal, in which words are typed and the tab key is pressed."""
    script = write_script(commands, "zsh", tmp_path)
    terminal, inner = os.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    environment = {**os.environ, "TERM": "dumb", "HOME": str(tmp_path), "PS1": ""}
    zsh = subprocess.Popen(
        ["zsh", "-f", "-i"], stdin=inner, stdout=inner, stderr=inner, cwd=tmp_path, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        os.write(terminal, f"autoload -U compinit; compinit -u -D; source {script}; echo rea''dy\n".encode())
        read_until(terminal, "ready\r\n")
        for typed, shown in (
            ("pix2seq ben", "pix2seq benchmark "),
            ("pix2seq predict --thr", "predict --threshold"),
            ("pix2seq predict --tasks cap", "--tasks captioning"),
            ("pix2seq data scenes --cou", "data scenes --count"),
            ("pix2seq train --recipe coco_scr", "--recipe coco_scratch"),
        ):
            os.write(terminal, f"{typed}\t".encode())
            read_until(terminal, shown)
            os.write(terminal, b"\x15")  # Ctrl-U, a new line
    finally:
        zsh.kill()
        zsh.wait()
        os.close(terminal)
        os.close(inner)


def test_the_command_prints_the_script(capsys, commands):
    assert cli.main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == completion.bash_script(*commands)
    assert cli.main(["completion", "tcsh"]) == 2
    assert "choose from 'bash', 'zsh', 'fish'" in capsys.readouterr().err
