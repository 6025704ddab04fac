"""How the web page is served: a private temporary folder, no network, nothing that gradio would tell anybody."""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pix2seq_hf.app.files import swept, temporary_folder
from pix2seq_hf.app.guard import Guard
from pix2seq_hf.app.limits import Limits
from pix2seq_hf.default_model import DEFAULT_MODEL

REMEDY = "the web page needs gradio: pip install 'pix2seq_hf[demo]'"


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the context lasts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def check_gradio():
    """Raise ImportError with the remedy if gradio is not there; it is not imported, for then it makes folders."""
    try:
        is_there = importlib.util.find_spec("gradio") is not None
    except ValueError:  # somebody has forbidden it
        is_there = False
    if not is_there:
        raise ImportError(REMEDY)


@contextmanager
def serve(
    model: Any, processor: Any, limits: Limits, host: str = "127.0.0.1", port: int | None = None, title: str = "model"
) -> Iterator[str]:
    r"""Serve the page of a model while the context lasts.

    Args:
        model, processor: See [`run_tasks`].
        limits ([`Limits`]): What visitors may ask for.
        host (`str`): Address to listen on; `0.0.0.0` is all of this machine.
        port (`int`, *optional*): By default the first free one from 7860.
        title (`str`): Name of the model.
    Yields:
        `str`: The page's address.
    Raises:
        ImportError: If gradio is not installed.
        OSError: If the port is taken, or the address is not of this machine."""
    with temporary_folder() as folder:
        # gradio reads the first of them when it makes components and when it serves files.
        quiet = {
            "GRADIO_TEMP_DIR": str(folder),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        with environment(quiet):
            check_gradio()
            from pix2seq_hf.app.page import STYLE, THEME, Desk, build_page

            page = build_page(Desk(model, processor, limits, folder / "results"), title, folder / "examples")
            with swept(folder, limits.keep_minutes):
                try:
                    yield _launch(page, limits, folder, host, port, theme=THEME, css=STYLE)
                finally:
                    page.close(verbose=False)


def _launch(page: Any, limits: Limits, folder: Path, host: str, port: int | None, **looks) -> str:
    """Start to serve a page that `looks` so; return its address."""
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            share=False,
            inbrowser=False,
            quiet=True,
            show_error=False,
            footer_links=[],
            allowed_paths=[str(folder)],
            max_file_size=limits.max_bytes,
            enable_monitoring=False,
            run_history=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            **looks,
            app_kwargs={"middleware": [(Guard, (), {"limits": limits})], "docs_url": None},
        )
    except OSError:
        places = "7860 and those after it are" if port is None else f"{port} is"
        advice = "choose another --port or --host"
        raise OSError(f"{host}: port {places} taken, or it is no address of this machine; {advice}") from None
    return address


def model_title(folder: str) -> str:
    """The name of a model folder."""
    return "the model in the box" if folder == DEFAULT_MODEL else Path(folder).resolve().name
