"""notebooks/: each runs from top to bottom with the model in the box; none has anything stored of an earlier run."""

import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 30  # lines
REASON = 'the tools of notebooks are not installed: pip install ".[notebooks]"'
# Of each notebook, how many pictures it shows at least, and what its outputs say somewhere.
SHOWN = {
    "01_detection": (3, r"'score': "),
    "02_all_tasks": (4, r"drawn: .*'image_id': 1"),
    "03_fine_tuning": (2, r"yolo \{1: 'person', 2: 'animal', 3: 'vehicle'\}.*'AP'"),
    "04_evaluation": (2, r"object_detection \{'AP'.*'missed'"),
}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_they_are_found():
    assert {path.stem for path in NOTEBOOKS} == {*SHOWN}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_of_a_run_is_stored(path):
    content = read(path)
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["cells"][0]["cell_type"] == "markdown" and content["cells"][0]["source"][0].startswith("# ")
    ids = [cell["id"] for cell in content["cells"]]
    assert len(ids) == len(set(ids))
    for cell in content["cells"]:
        assert len(cell["source"]) <= LONGEST_CELL
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    assert {*content["metadata"]} == {"kernelspec", "language_info"}


def test_they_are_linked():
    for page in ("README.md", "docs/notebooks.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for path in NOTEBOOKS:
            assert f"notebooks/{path.name}" in text, f"{page} does not name {path.name}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run_from_top_to_bottom(path, box_model, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason=REASON)
    nbformat = pytest.importorskip("nbformat", reason=REASON)
    pytest.importorskip("ipykernel", reason=REASON)
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "desk").mkdir()
    book = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    nbformat.validate(book)
    nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path / "desk")}}
    ).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    said = "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)
    least, pattern = SHOWN[path.stem]
    assert re.search(pattern, said, re.DOTALL), said
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= least
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as shown:
            assert min(shown.size) > 20
    assert "Warning" not in said, said
    assert not list((tmp_path / "desk").iterdir()), "a notebook leaves files where it runs"
