"""cli.py: the table of commands, help that starts with examples, and errors that are one line."""

import importlib
import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pix2seq_hf import cli
from pix2seq_hf.outputs import JsonTarget, add_json_option, make_folder


def add_command(monkeypatch, run, doc="Do it.\n\nexamples:\n  pix2seq probe --number 3\n"):
    """Put a command `probe` with an option `--number` into the table."""
    module = SimpleNamespace(
        __doc__=doc, add_arguments=lambda parser: parser.add_argument("--number", type=int, default=1), run=run
    )
    monkeypatch.setitem(cli.COMMANDS, "probe", cli.Command("probe_module", "a command for tests"))
    monkeypatch.setitem(sys.modules, "probe_module", module)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_examples_before_its_options(name, capsys):
    module = importlib.import_module(cli.COMMANDS[name].module)
    assert callable(module.run)
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"  pix2seq {name}" in text
    assert text.index(f"  pix2seq {name}") < text.index("\noptions:")


@pytest.mark.parametrize("name", [*cli.COMMANDS, "data inspect", "data convert", "data scenes"])
def test_help_reads_well(name, capsys):
    first, *_ = name.split()
    assert cli.main([*name.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: pix2seq {name}") and lines[1] == ""  # one line, whatever options there are
    assert "examples:" in lines[:5]
    for command in cli.list_parsers(cli.build_parser(first, importlib.import_module(cli.COMMANDS[first].module))):
        for action in command._actions:
            words = action.help.split("(default")[0].split()
            assert len(words) > 1 and not action.help.endswith("."), action.option_strings


def test_overview_lists_all_commands(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.index("examples:") < text.index("commands:")
    for name, command in cli.COMMANDS.items():
        assert f"  {name}" in text and command.summary in text
    assert cli.main([]) == 2
    assert capsys.readouterr().err == text


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_can_be_quiet_and_verbose(name, capsys):
    parser = cli.build_parser(name, importlib.import_module(cli.COMMANDS[name].module))
    for command in cli.list_parsers(parser):
        options = [action.option_strings for action in command._actions]
        assert ["--quiet"] in options and ["--verbose", "--traceback"] in options
        for action in command._actions:
            if action.dest == "json" and name != "card":  # which reads such files
                assert action.type is JsonTarget
    path = [*name.split(), *(["inspect"] if name == "data" else [])]
    assert cli.main([*path, "--quiet", "--verbose"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "rank", "level"),
    [([], "0", "INFO"), (["--quiet"], "0", "WARNING"), (["--verbose"], "0", "DEBUG"), (["--verbose"], "1", "ERROR")],
)
def test_what_is_logged(monkeypatch, options, rank, level):
    log, seen = logging.getLogger("pix2seq_hf"), []
    before = log.level
    monkeypatch.setenv("RANK", rank)
    add_command(monkeypatch, lambda args: seen.append(logging.getLevelName(log.level)))
    assert cli.main(["probe", *options]) == 0
    assert seen == [level] and log.level == before


def test_json_stands_alone_on_standard_output(monkeypatch, tmp_path, capsys):
    def run(args):
        print("a table for people")
        args.json.check()
        args.json.write({"class": "Straße"})

    add_command(monkeypatch, run)
    module = sys.modules["probe_module"]
    monkeypatch.setattr(module, "add_arguments", lambda parser: add_json_option(parser, "what was found"))
    assert cli.main(["probe", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == {"class": "Straße"}
    assert cli.main(["probe", "--json", str(tmp_path / "new/found.json")]) == 0
    assert capsys.readouterr().out == "a table for people\n"
    assert (tmp_path / "new/found.json").read_text(encoding="utf-8") == '{\n  "class": "Straße"\n}\n'
    assert cli.main(["probe", "--json", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"pix2seq probe: error: {tmp_path}: is a folder; give --json the name of a file\n"


def test_a_refused_command_leaves_no_empty_folders(monkeypatch, tmp_path, capsys):
    def run(args):
        make_folder(tmp_path / "old/new/deep", "--output")
        make_folder(tmp_path / "kept", "--report")
        (tmp_path / "kept/file").touch()
        raise ValueError("no model")

    (tmp_path / "old").mkdir()
    add_command(monkeypatch, run)
    assert cli.main(["probe"]) == 2
    assert {path.name for path in tmp_path.rglob("*")} == {"old", "kept", "file"}
    with pytest.raises(OSError, match="cannot be made"):
        make_folder(tmp_path / "begun" / ("x" * 300), "--output")
    assert not (tmp_path / "begun").exists()


def test_unknown_command_suggests_the_nearest(capsys):
    assert cli.main(["predit"]) == 2
    assert capsys.readouterr().err == "pix2seq: error: unknown command 'predit': did you mean 'predict'?\n"
    assert cli.main(["xyz"]) == 2
    assert "choose from predict" in capsys.readouterr().err


def test_version_names_the_libraries(capsys):
    assert cli.main(["--version"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("pix2seq_hf ") and "transformers 5" in text and "torch " in text


def test_exit_code_of_the_command_is_returned(monkeypatch):
    add_command(monkeypatch, lambda args: args.number)
    assert cli.main(["probe", "--number", "1"]) == 1
    assert cli.main(["probe", "--number", "0"]) == 0
    add_command(monkeypatch, lambda args: None)
    assert cli.main(["probe"]) == 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("bins 1000\n  overlap"), "bins 1000 overlap"),
        (FileNotFoundError(2, "No such file or directory", "a/b.jpg"), "a/b.jpg: No such file or directory"),
        (OSError("cannot read it"), "cannot read it"),
        (ImportError("install the extra 'conversion'"), "install the extra 'conversion'"),
        (RuntimeError("CUDA out of memory. Tried"), "out of memory: choose a smaller batch size, or --device cpu"),
    ],
)
def test_errors_become_one_line(monkeypatch, capsys, error, line):
    def run(args):
        raise error

    add_command(monkeypatch, run)
    assert cli.main(["probe"]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"pix2seq probe: error: {line}\n" and captured.out == ""
    for option in ("--verbose", "--traceback"):
        assert cli.main(["probe", option]) == 2
        shown = capsys.readouterr().err
        assert "Traceback (most recent call last)" in shown and "in run\n    raise error\n" in shown
        assert shown.endswith(f"\npix2seq probe: error: {line}\n")


def test_faults_of_our_own_are_not_hidden(monkeypatch):
    def run(args):
        raise RuntimeError("shapes differ")

    add_command(monkeypatch, run)
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.main(["probe"])


def test_interruption(monkeypatch, capsys):
    def run(args):
        raise KeyboardInterrupt

    add_command(monkeypatch, run)
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "pix2seq probe: interrupted\n"


@pytest.mark.parametrize("arguments", [["--number", "x"], ["--numbr", "1"], ["--num", "1"]])
def test_wrong_options_are_one_line(monkeypatch, capsys, arguments):
    add_command(monkeypatch, lambda args: 0)
    assert cli.main(["probe", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pix2seq probe: error: ") and error.count("\n") == 1 and "--help" in error


def test_closed_pipe_is_quiet():
    """As in `pix2seq ... | head -1`: the rest of the output is dropped without an error line."""
    code = (
        "import sys, types; from pix2seq_hf import cli\n"
        "def run(args):\n    for number in range(100_000): print('a long line of output', number)\n"
        "sys.modules['probe'] = types.SimpleNamespace(__doc__='', add_arguments=lambda parser: None, run=run)\n"
        "cli.COMMANDS['probe'] = cli.Command('probe', ''); sys.exit(cli.main(['probe']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 1
