"""What is wrong with a data set: mended and counted, or one line that says what to do."""

import collections
from typing import NamedTuple


class Problem(NamedTuple):
    r"""One thing that is wrong in a data set.

    Args:
        kind (`str`): What it is in a few words, the same for all of its kind: "box outside of the picture".
        message (`str`): One line: file, id, what is wrong, and what was done or what to do.
        is_error (`bool`): Whether nothing can be trained before it is mended by hand."""

    kind: str
    message: str
    is_error: bool


class Problems:
    r"""Collects what readers find in a data set.

    A reader mends what it can and says so by [`Problems.repair`]; it reports what it cannot mend by [`Problems.error`],
    which ends the reading, or returns if all errors are wanted: then the reader leaves the entry out and goes on.

    Args:
        keep_going (`bool`): Collect errors too instead of raising the first."""

    def __init__(self, keep_going: bool = False):
        self.keep_going = keep_going
        self.found: list[Problem] = []

    def repair(self, kind: str, message: str) -> None:
        """Note something that was mended or left out."""
        self.found.append(Problem(kind, message, is_error=False))

    def error(self, kind: str, message: str) -> None:
        """Note something that must be mended by hand; a ValueError unless all errors are wanted."""
        if not self.keep_going:
            raise ValueError(message)
        self.found.append(Problem(kind, message, is_error=True))

    @property
    def errors(self) -> list[Problem]:
        """What must be mended by hand."""
        return [problem for problem in self.found if problem.is_error]

    def counts(self) -> dict[str, int]:
        """How often each kind was found, the most frequent first."""
        return dict(collections.Counter(problem.kind for problem in self.found).most_common())
