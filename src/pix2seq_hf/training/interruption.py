"""What happens when a run is asked to stop: the step is finished and saved before it ends."""

import signal
import threading
from types import FrameType
from typing import Any

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class TrainingInterrupted(KeyboardInterrupt):
    r"""A run was stopped from outside, after it saved its state.

    Args:
        message (`str`): One line: where it stopped and how to go on.
        number (`int`): The signal."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What a process that a signal ended returns: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class StopSignals:
    r"""While it is entered, the first Ctrl-C or SIGTERM is remembered in `received`; the second ends at once.

    Only the main thread of a process gets signals; elsewhere this does nothing."""

    def __init__(self):
        self.received: int | None = None
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in NAMES:
                self._earlier[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number


def ignore_stop_signals() -> None:
    """For worker processes: Ctrl-C goes to the whole group, but it is for their parent to end them."""
    for number in NAMES:
        signal.signal(number, signal.SIG_IGN)
