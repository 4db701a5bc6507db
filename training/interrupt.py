"""SIGINT and SIGTERM: the first asks the loop to stop at its next step, the second ends the process at once.

Under torchrun the second is ignored: torchrun hands on a signal that the process may have received already, and ends
the process by itself after a while.
"""

import os
import signal
import sys
import threading
from types import FrameType


class Interrupt:
    """While entered, `signum` is 0 until SIGINT or SIGTERM arrives, then its number.

    Outside the main thread, where Python takes no signals, it stays 0.
    """

    def __init__(self, insist: bool = True):
        self.signum, self.insist = 0, insist

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self.previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in getattr(self, "previous", {}).items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self.signum and self.insist:
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), b"\x1b[?25h")  # show the cursor, which a progress bar hides
            # Nothing is closed or saved any more: whoever sends a second signal does not want to wait.
            os._exit(128 + signum)
        # The first signal decides the exit code.
        self.signum = self.signum or signum
