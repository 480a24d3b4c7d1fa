"""A bound on every step: what hangs is ended, with the stacks of all threads, so that it can be started again.

On a pod a step hangs for ever when one chip or one host is lost without a word; nobody watches at night.
"""

import faulthandler
import os
import sys
import threading
import time

from absl import flags

STEP_TIMEOUT = flags.DEFINE_float("step_timeout", 1800.0, "Seconds until a step that hangs ends the run; 0: never.", 0)

STUCK = 4  # exit code
LATER = 30  # seconds more, for a thread that holds the interpreter's lock and lets no other speak


class Watchdog:
    """Ends the process when what it was last told of takes too long. Use it in `with`.

    Args:
        seconds: the bound of a step; 0 watches nothing.
        tell: called with the line before the end, for the other processes.
    """

    def __init__(self, seconds, tell=lambda line: None):
        self._seconds, self._tell = seconds, tell
        self._changed, self._armed = threading.Condition(), 0.0
        self._what, self._deadline = None, None

    def at(self, what, times=1):
        """What is being done from now on ("step 12"), which may take so many times the bound."""
        if not self._seconds:
            return
        bound = self._seconds * times
        now = time.monotonic()
        with self._changed:
            self._what, self._bound, self._deadline = what, bound, now + bound
        if now - self._armed > 1 or times != 1:
            self._armed = now
            faulthandler.dump_traceback_later(bound + LATER, exit=True, file=sys.__stderr__)

    def __enter__(self):
        if self._seconds:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_):
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()
            with self._changed:
                self._what = None
                self._seconds = 0
                self._changed.notify()
            self._thread.join()

    def _watch(self):
        with self._changed:
            while self._seconds:
                now = time.monotonic()
                if self._what is not None and now >= self._deadline:
                    self._end()
                left = self._seconds if self._what is None else self._deadline - now
                self._changed.wait(min(left, self._seconds))

    def _end(self):
        line = f"{self._what} has not ended after {self._bound:g} s"
        os.write(2, f"error: {line}; where each thread stands:\n".encode())
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        os.write(2, b"The same command goes on from the newest checkpoint; --step_timeout sets the bound\n")
        self._tell(line)
        os._exit(STUCK)
