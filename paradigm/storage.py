"""Storage that errs now and then: the same call again, a little later."""

import errno
import re
import time

# What a network file system says in passing. A full disk, a missing file or a lack of rights does not pass.
PASSING = frozenset(
    getattr(errno, name)
    for name in "EIO EAGAIN EINTR EBUSY ESTALE ETIMEDOUT ECONNRESET ECONNABORTED ENETDOWN ENETUNREACH EHOSTDOWN "
    "EHOSTUNREACH EREMOTEIO".split()
    if hasattr(errno, name)
)
WAITS = (0.5, 2.0, 8.0)  # seconds before the second try, the third and the fourth


def passes(error):
    """Whether the same call may well succeed a little later: by an OSError's number, or tensorstore's text of one."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in PASSING
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return int(code[1]) in PASSING if code else bool(re.match(r"(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED)\b", str(error)))


def patiently(call, *args, waits=None):
    """call(*args), tried again after each of the waits (default WAITS) while it fails in passing."""
    for wait in WAITS if waits is None else waits:
        try:
            return call(*args)
        except Exception as error:
            if not passes(error):
                raise
        time.sleep(wait)
    return call(*args)
