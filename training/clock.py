"""The time of a run, resumed or not: as a whole, and of training steps alone."""

import time


class Clock:
    """Counts on from the seconds of a checkpoint. Evaluation and saving count in `time`, not in `train_seconds`."""

    def __init__(self, time_before: float = 0.0, train_seconds_before: float = 0.0):
        # As if the run had begun that much earlier in this process.
        self._began = time.perf_counter() - time_before
        self.train_seconds = train_seconds_before
        self._lap_tokens, self._lap_began = 0, train_seconds_before

    @property
    def time(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._began

    def trained(self, tokens: int, seconds: float) -> None:
        """Count training on that many tokens."""
        self.train_seconds += seconds
        self._lap_tokens += tokens

    def lap_speed(self) -> float:
        """Return tokens per second of training since the last call, and start a new lap."""
        speed = self._lap_tokens / (self.train_seconds - self._lap_began)
        self._lap_tokens, self._lap_began = 0, self.train_seconds
        return speed
