"""How far long work on the host is, said to whoever listens: the training loop shows it, and else nobody does.

for batch in progress.counted(batches, "batch", 40): ...        in an evaluator
with progress.heard_by(print): ...                              around it: 'batch 1 of 40', 'batch 2 of 40' ...
"""

import contextlib
import contextvars

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
