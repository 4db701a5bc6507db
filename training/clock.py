"""The time of a run, over all of its sessions: as a whole, and of training steps alone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds on from those of earlier sessions. Evaluation and saving count in `time`, not in `train_seconds`."""

    def __init__(self, time_before: float = 0.0, train_seconds_before: float = 0.0):
        self._began = time.perf_counter() - time_before
        self.train_seconds = train_seconds_before
        self._lap_tokens, self._lap_began = 0, train_seconds_before

    @property
    def time(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._began

    @contextmanager
    def training(self, tokens: int) -> Iterator[None]:
        """Count what runs inside as training on that many tokens."""
        began = time.perf_counter()
        yield
        self.train_seconds += time.perf_counter() - began
        self._lap_tokens += tokens

    def speed(self) -> float:
        """Return tokens per second of training since the last call."""
        speed = self._lap_tokens / (self.train_seconds - self._lap_began)
        self._lap_tokens, self._lap_began = 0, self.train_seconds
        return speed
