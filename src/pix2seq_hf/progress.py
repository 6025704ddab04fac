"""How does a command show how far it is: as a bar on a terminal, as a line now and then in a file of logs."""

import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15.0


def open_bar(
    total: int | None,
    unit: str,
    title: str | None = None,
    *,
    is_shown: bool = True,
    is_kept: bool = True,
    **options: Any,
) -> tqdm:
    r"""Open a progress bar on standard error; every bar of this package comes from here.

    Args:
        total (`int`, *optional*): How much there is to do, where that is known.
        unit (`str`): Of what, in the singular.
        title (`str`, *optional*): Stands before the figures.
        is_shown (`bool`): Whether anything is written at all.
        is_kept (`bool`): Whether the bar stays on the terminal when it is closed.
        options (`Any`): Further ones of `tqdm.tqdm`.
    Returns:
        `tqdm.tqdm`: On a terminal a bar, else a [`Lines`]. A context manager; `update(number)` counts."""
    common = {"total": total, "unit": unit, "desc": title, "disable": not is_shown, **options}
    if sys.stderr.isatty():
        return tqdm(dynamic_ncols=True, leave=is_kept, **common)
    return Lines(ncols=0, **common)  # no bar, only the figures


class Lines(tqdm):
    """A progress bar for what is no terminal: whole lines, at most one in `SECONDS_BETWEEN_LINES`, and a last one.

    What is done before the first line is due writes nothing. The base class counts and words the figures, and never
    gets to write: its delay has no end."""

    def __init__(self, **options: Any):
        super().__init__(delay=float("inf"), miniters=1, **options)
        self._seconds, self._count = None if self.disable else self.start_t, None  # of the last line

    def update(self, n: float = 1) -> bool:
        """Count, and write a line if one is due."""
        super().update(n)
        return bool(self.refresh())

    def refresh(self, *_: Any, **__: Any) -> bool:
        """Write a line if one is due; say whether it was."""
        if self.disable or self._time() - self._seconds < SECONDS_BETWEEN_LINES:
            return False
        self._write()
        return True

    def clear(self, *_: Any, **__: Any) -> None:
        """Do nothing: what is written stays."""

    def close(self) -> None:
        """Write the last line, if others were written before it or one is due."""
        if not self.refresh() and self._count not in (None, self.n):
            self._write()
        super().close()

    def _write(self) -> None:
        self._seconds, self._count = self._time(), self.n
        print(str(self).strip(), file=self.fp, flush=True)
