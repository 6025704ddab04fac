"""How long the parts of a run of tasks take: preparing pictures, encoding, decoding, and what comes after."""

import time
from collections.abc import Callable
from typing import Any

import torch

from .engine import TaskRun
from .results import Pix2SeqResult

PREPROCESSING, ENCODER, DECODING, REST = PARTS = ("preprocessing", "encoder", "decoding", "post-processing")


class TimedRun(TaskRun):
    """A run that knows the seconds that each of its `PARTS` took, by its `clock`: `seconds`."""

    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def run(self) -> list[Pix2SeqResult]:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        start = self._now()
        results = super().run()
        self.seconds[REST] = self._now() - start - sum(self.seconds.values())
        return results

    def _now(self) -> float:
        """The time when all that the device was told to do is done."""
        if self.model.device.type != "cpu":
            getattr(torch, self.model.device.type).synchronize()
        return self.clock()

    def _timed(self, part: str, function: Callable, *args, **options) -> Any:
        start = self._now()
        result = function(*args, **options)
        self.seconds[part] += self._now() - start
        return result

    def _preprocess(self, *args, **options):
        return self._timed(PREPROCESSING, super()._preprocess, *args, **options)

    def _encode(self, *args, **options):
        return self._timed(ENCODER, super()._encode, *args, **options)

    def _generate(self, *args, **options):
        return self._timed(DECODING, super()._generate, *args, **options)


__all__ = ["PARTS", "TimedRun"]
