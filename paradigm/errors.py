"""The one exception that a person's input may cause: one line that says what is wrong, where, and how to mend it."""

import difflib


class UserError(ValueError):
    """Bad input. The message is complete in itself; entry points print it without a traceback and exit with code 2."""


def choose(what, name, table):
    """table[name], or a UserError that names the nearest entry.

    Raises:
        UserError: when `name` is not in the table.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), [str(k) for k in table], 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"unknown {what} {name!r}: {hint}choose from {', '.join(map(str, table))}")


def build(kind, fields, overrides):
    """A Flax module of class `kind`: the fields of a named size, with `overrides` in their place.

    Raises:
        UserError: an override that is no field of `kind`; the nearest is named.
    """
    names = {name: name for name in kind.__dataclass_fields__ if name not in ("parent", "name")}
    changes = {choose(f"field of {kind.__name__}", name, names): value for name, value in overrides.items()}
    return kind(**{**fields, **changes})
