"""The one exception that a person's input may cause: one line that says what is wrong, where, and how to mend it."""


class UserError(ValueError):
    """Bad input. The message is complete in itself; entry points print it without a traceback and exit with code 2."""
