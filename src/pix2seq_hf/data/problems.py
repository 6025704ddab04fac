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

    A reader mends what it can and says so by [`Problems.repair`]; it reports what it cannot mend by [`Problems.error`]
    and a single picture that cannot be used by [`Problems.lose`]. Both end the reading, or return if they are wanted:
    then the reader leaves the entry out and goes on.

    Args:
        keep_going (`bool`): Collect errors too instead of raising the first.
        lost (`str`): What becomes of pictures that cannot be used: `"error"`, as of anything else that cannot be
            mended; `"left out"`; or `"kept"`: where enough is known of one it has its row, so that those after it keep
            their numbers, and reading it fails."""

    def __init__(self, keep_going: bool = False, lost: str = "error"):
        assert lost in ("error", "left out", "kept")
        self.keep_going, self.on_lost = keep_going, lost
        self.found: list[Problem] = []
        self.lost: list[Problem] = []
        self.left_out: list[Problem] = []  # the lost ones that have no row

    def repair(self, kind: str, message: str) -> None:
        """Note something that was mended or left out."""
        self.found.append(Problem(kind, message, is_error=False))

    def error(self, kind: str, message: str) -> None:
        """Note something that must be mended by hand; a ValueError unless all errors are wanted."""
        if not self.keep_going:
            raise ValueError(message)
        self.found.append(Problem(kind, message, is_error=True))

    def lose(self, kind: str, message: str, is_known: bool = False) -> bool:
        r"""Note a picture that cannot be used, or whose annotations cannot.

        Args:
            kind (`str`), message (`str`): As of [`Problem`].
            is_known (`bool`): Whether size and annotations are known all the same.
        Returns:
            `bool`: Whether the reader makes a row of it.
        Raises:
            ValueError: Unless errors are collected, or lost pictures are wanted."""
        if self.on_lost == "error":
            self.error(kind, message)
        else:
            self.found.append(Problem(kind, message, is_error=True))
        self.lost.append(self.found[-1])
        is_kept = is_known and self.on_lost == "kept"
        if not is_kept:
            self.left_out.append(self.found[-1])
        return is_kept

    @property
    def errors(self) -> list[Problem]:
        """What must be mended by hand."""
        return [problem for problem in self.found if problem.is_error]

    def counts(self) -> dict[str, int]:
        """How often each kind was found, the most frequent first."""
        return dict(collections.Counter(problem.kind for problem in self.found).most_common())
