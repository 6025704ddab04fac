"""What every test may use: the reference recordings and the table of largest differences printed at the end."""

import os
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parents[1]
PARITY_LINES = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[PARITY_LINES] = []


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the reference recordings (`model/`, `tasks/`); tests that need it skip where it is absent."""
    folder = Path(os.environ.get("PIX2SEQ_HF_GOLDEN") or PROJECT_ROOT.parent / "shared" / "golden")
    if not folder.is_dir():
        pytest.skip(f"no reference recordings in {folder}: set PIX2SEQ_HF_GOLDEN to their folder")
    return folder


@pytest.fixture(scope="session")
def box_model() -> str:
    """The model in the box; tests that need it skip where the package has none."""
    from pix2seq_hf import DEFAULT_MODEL

    if not Path(DEFAULT_MODEL, "model.safetensors").is_file():
        pytest.skip(f"there is no model in the box: {DEFAULT_MODEL}")
    return DEFAULT_MODEL


@pytest.fixture
def parity_report(request):
    """`parity_report(name, value, tolerance)`: assert `value <= tolerance` and print it at the end of the run."""

    def report(name, value, tolerance=0.0):
        value, tolerance = float(value), float(tolerance)
        request.config.stash[PARITY_LINES].append((name, value, tolerance))
        assert value <= tolerance, f"{name}: largest difference {value:g} is above {tolerance:g}"  # NaN fails too

    return report


def pytest_terminal_summary(terminalreporter, config):
    lines = config.stash[PARITY_LINES]
    if not lines:
        return
    terminalreporter.section("largest differences from the reference recordings")
    width = max(len(name) for name, _, _ in lines)
    for name, value, tolerance in lines:
        shown, allowed = (f"{number:.3g}" if number else "exact" for number in (value, tolerance))
        verdict = "" if value <= tolerance else "   FAILED"
        terminalreporter.write_line(f"{name:<{width}}  {shown:>9}  allowed {allowed}{verdict}")
