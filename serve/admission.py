"""How many searches a replica takes on: one more than its bound is refused at once, not kept waiting."""

from collections.abc import Iterator
from contextlib import contextmanager

from serve import problems


class Admission:
    """Searches at work and waiting in this replica, at most `most`. Used from one event loop."""

    def __init__(self, most: int) -> None:
        self.most, self.busy = most, 0

    def check(self) -> None:
        """Raises ProblemError (503, Retry-After) where the replica is full."""
        if self.busy >= self.most:
            raise problems.busy(f"the service is busy with {self.busy} searches (max_queue); try again in a moment")

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A place for one search. Raises as `check` does."""
        self.check()
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1
