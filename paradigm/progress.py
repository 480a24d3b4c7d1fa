"""How far long work on the host is, and how fast, said to whoever listens: the training loop shows it, and else nobody.

for batch in progress.counted(batches, "batch", 40): ...        in an evaluator
with progress.heard_by(print): ...                              around it: 'batch 1 of 40', 'batch 2 of 40' ...

progress.took("decoded_tokens", 256, 0.5)                       in what decodes
with progress.timed() as rates: ...                             around it: rates.per_second()
"""

import contextlib
import contextvars

_rates = contextvars.ContextVar("rates", default=())
_listener = contextvars.ContextVar("listener", default=None)


@contextlib.contextmanager
def heard_by(listener):
    """What is reported while the `with` lasts goes to listener(text), often: it shows as much of it as it likes."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def within(name):
    """What is reported while the `with` lasts begins with this name."""
    outer = _listener.get()
    with heard_by(outer and (lambda text: outer(f"{name} · {text}"))):
        yield


def report(text):
    """Says where the work is."""
    if (listener := _listener.get()) is not None:
        listener(text)


def counted(items, what, total):
    """The items, each reported as 'what n of total' before it is worked on."""
    for n, item in enumerate(items, 1):
        report(f"{what} {n} of {total}")
        yield item


class Rates:
    """Sums of what was counted by the clock."""

    def __init__(self):
        self._sums = {}

    def add(self, name, number, seconds):
        have = self._sums.get(name, (0, 0.0))
        self._sums[name] = have[0] + number, have[1] + seconds

    def per_second(self):
        """{name_per_second: number}, of what took any time."""
        return {f"{name}_per_second": n / seconds for name, (n, seconds) in self._sums.items() if seconds > 0}


@contextlib.contextmanager
def timed():
    """Gives the Rates of what is counted while the `with` lasts."""
    rates = Rates()
    token = _rates.set((*_rates.get(), rates))
    try:
        yield rates
    finally:
        _rates.reset(token)


def took(name, number, seconds):
    """Counts so many in so many seconds."""
    for rates in _rates.get():
        rates.add(name, number, seconds)
