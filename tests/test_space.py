"""app.py and space/: the web page as a Hugging Face Space."""

import configparser
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tiny_multitask import save_multitask

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def settings():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_requirements_are_those_of_the_package(settings):
    expected = settings["options"]["install_requires"].strip()
    assert (ROOT / "space" / "requirements.txt").read_text(encoding="utf-8").strip() == expected


def test_header(settings):
    _, header, _ = (ROOT / "space" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["sdk"] == "gradio" and (ROOT / header["app_file"]).is_file()
    least = re.search(r"gradio>=([\d.]+)", settings["options.extras_require"]["demo"])[1]
    assert header["sdk_version"].startswith(f"{least}.")
    assert len(header["short_description"]) <= 60


def test_it_starts_and_ends(tmp_path):
    """Put together as space/README.md says, listening where a Space is told to; nothing is left when it ends."""
    pytest.importorskip("gradio", reason="the web page needs gradio: pip install '.[demo]'")
    space, temporary = tmp_path / "space", tmp_path / "tmp"
    temporary.mkdir()
    shutil.copytree(ROOT / "src", space / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "app.py", space)
    save_multitask(space / "model")
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    variables = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "TMPDIR": str(temporary)}
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=space, env={**os.environ, **variables}, stdout=log, stderr=log
        )
        try:
            end = time.monotonic() + 120
            while "Ctrl-C ends it" not in (tmp_path / "log").read_text():
                assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.1)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                assert b"Pix2Seq: model" in answer.read()
            names = sorted(path.name.partition("-")[0] for path in temporary.iterdir())
            assert names == ["pix2seq"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == [f"http://127.0.0.1:{port}/ shows {space / 'model'}; Ctrl-C ends it"]
    assert not list(temporary.iterdir())
    assert not list(space.rglob("*.pyi")) and not (space / ".gradio").exists()
