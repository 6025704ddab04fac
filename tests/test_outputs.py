"""outputs.py, and commands that find out before their work that what they make cannot be written."""

import os

import pytest

from pix2seq_hf import cli
from pix2seq_hf.outputs import check_file, make_folder


def test_folders_are_made(tmp_path):
    assert make_folder(tmp_path / "a/b", "--output").is_dir() and make_folder(tmp_path / "a", "--output").is_dir()
    assert check_file(str(tmp_path / "c/d.json"), "--json") == tmp_path / "c/d.json" and (tmp_path / "c").is_dir()
    assert not (tmp_path / "c/d.json").exists()


def test_what_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in ("file", "file/in/it"):
        with pytest.raises(OSError, match=rf"{path}: the folder cannot be made \(a file .*\); choose another"):
            make_folder(tmp_path / path, "--output")
    with pytest.raises(OSError, match=r"file: the folder cannot be made"):
        check_file(tmp_path / "file/numbers.json", "--json")
    with pytest.raises(IsADirectoryError, match="is a folder; give --json the name of a file"):
        check_file(tmp_path, "--json")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # nothing is forbidden to root
    for check, name in ((make_folder, "new"), (check_file, "new/file"), (check_file, "file")):
        with pytest.raises(PermissionError, match="cannot be written; choose another --report"):
            check(tmp_path / name, "--report")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--model", "none", "--data", "none", "--json", "{}"], "is a folder; give --json the name"),
        (["evaluate", "--model", "none", "--data", "none", "--report", "{}/file"], "choose another --report"),
        (["evaluate", "--model", "none", "--data", "none", "--output", "{}/file"], "choose another --output"),
        (["train", "--recipe", "laptop", "--data", "none", "--output", "{}/file"], "choose another --output"),
        (["convert", "--checkpoint", "none", "--output", "{}/file/vit-b"], "choose another --output"),
    ],
)
def test_it_is_said_before_the_work(tmp_path, capsys, arguments, message):
    """Although there is neither a model nor a data set."""
    (tmp_path / "file").touch()
    assert cli.main([argument.replace("{}", str(tmp_path)) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
