"""The web page as a Hugging Face Space, or wherever `python app.py` is started; space/README.md says how."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "src"))  # a Space installs what we need, not ourselves

from pix2seq_hf import DEFAULT_MODEL  # noqa: E402
from pix2seq_hf.cli import main  # noqa: E402

if __name__ == "__main__":
    model = os.environ.get("PIX2SEQ_MODEL", str(ROOT / "model") if (ROOT / "model").is_dir() else DEFAULT_MODEL)
    address = ["--host", os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")]
    address += ["--port", os.environ.get("GRADIO_SERVER_PORT", "7860")]
    sys.exit(main(["app", "--model", model, *address, *sys.argv[1:]]))
