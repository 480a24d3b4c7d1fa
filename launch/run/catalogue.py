"""What gin files may name, for people who look for it: lists by kind, and the settings of one name."""

import ast
import dataclasses
import difflib
import inspect
import re

from launch.run import registry
from paradigm.errors import UserError

KINDS = ("runs", "objectives", "models", "data", "evaluators", "adaptations", "optimizers", "schedules", "parts")


def by_kind(imports=()):
    """{kind: {name: its one line}}; kinds as in KINDS, 'parts' being what the others are made of."""
    from paradigm.adapt import Adaptation
    from paradigm.evaluator import Evaluator
    from paradigm.objective import Objective
    from paradigm.optim import Optimizer
    from paradigm.schedule import Schedule

    bases = {"objectives": Objective, "evaluators": Evaluator, "adaptations": Adaptation}
    bases |= {"optimizers": Optimizer, "schedules": Schedule}
    found = {kind: {} for kind in KINDS}
    found["runs"] = {path: _header(registry.SHIPPED / path) for path in registry.shipped("runs")}
    for name, configurable in sorted(registry.configurables(imports).items()):
        kind = next(
            (k for k, base in bases.items() if inspect.isclass(configurable) and issubclass(configurable, base)), ""
        )
        if not kind and inspect.isclass(configurable) and callable(getattr(configurable, "build", None)):
            kind = "data"
        if not kind and _builds_a_model(configurable):
            kind = "models"
        found[kind or "parts"][name] = _first_sentence(inspect.getdoc(configurable) or "")
    return found


def listing(imports=()):
    """The text of --list."""
    lines = []
    for kind, names in by_kind(imports).items():
        width = max(map(len, names), default=0)
        lines += [f"{kind}:", *(f"  {name:<{width}}  {line}" for name, line in names.items()), ""]
    lines.append(
        "The settings of each: --describe=NAME. A run file names them as @NAME() and sets NAME.setting = value."
    )
    return "\n".join(lines)


def describe(name, imports=()):
    """The text of --describe=NAME: every setting of a configurable, its default and its meaning; or a run file's text.

    Raises UserError for a name that nothing has, with the nearest.
    """
    found = by_kind(imports)
    if name in found["runs"]:
        return (registry.SHIPPED / name).read_text("utf-8").rstrip()
    known = registry.configurables(imports)
    if name not in known:
        options = [*known, *found["runs"]]
        folded = {option.lower(): option for option in options}
        near = difflib.get_close_matches(name.lower(), folded, 1, 0.5)
        hint = f"did you mean '{folded[near[0]]}'? " if near else ""
        raise UserError(f"--describe={name}: nothing has that name: {hint}--list says what there is")
    configurable = known[name]
    kind = next(kind for kind, names in found.items() if name in names)
    rows = [(f"{name}.{key} = {default}", meaning) for key, default, meaning in settings(configurable)]
    doc = inspect.getdoc(configurable) or ""
    if all(meaning for _, meaning in rows):  # else it tells of the others in the midst of its sentences
        doc = _first_sentence(doc)
    lines = [f"{name} ({kind}; {configurable.__module__}): {doc}", ""]
    width = min(max((len(left) for left, _ in rows), default=0), 44)
    for left, meaning in rows:
        lines.append(f"  {left:<{width}}  {meaning}".rstrip())
    return "\n".join([*lines, *([] if rows else ["  no settings"])])


def settings(configurable):
    """[(name, default as text, meaning or '')] of all that a gin file may set."""
    meanings = _meanings(configurable)
    found = []
    for name, parameter in inspect.signature(configurable).parameters.items():
        if name in ("parent", "name") and hasattr(configurable, "clone"):  # a Flax module's, and no settings
            continue
        default = parameter.default
        if parameter.kind is parameter.VAR_KEYWORD:
            default = "ANY"
        elif default is parameter.empty:
            default = "(required)"
        elif type(default).__name__ == "_HAS_DEFAULT_FACTORY_CLASS":
            default = "(made anew)"
        else:
            default = _shown(default)
        found.append((name, default, meanings.get(name, "")))
    return found


def _shown(value):
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"@{type(value).__name__}()"
    return getattr(value, "__name__", None) or repr(value)


def _builds_a_model(configurable):
    """By the house's convention: a function that must be given a size, and takes **overrides, fields of a module."""
    if inspect.isclass(configurable):
        return "flax" in {base.__module__.split(".")[0] for base in configurable.__mro__}
    parameters = inspect.signature(configurable).parameters
    return "overrides" in parameters and next(iter(parameters.values())).default is inspect.Parameter.empty


def _meanings(configurable):
    """{setting: what the docstrings say of it}, those of a class's bases and `__init__` too; the nearest one counts."""
    owners = configurable.__mro__ if inspect.isclass(configurable) else (configurable,)
    names = list(inspect.signature(configurable).parameters)
    found = {}
    for owner in owners:
        for doc in (
            owner.__doc__,
            getattr(vars(owner).get("__init__"), "__doc__", None) if inspect.isclass(owner) else None,
        ):
            for name, meaning in _entries(inspect.cleandoc(doc or ""), names).items():
                found.setdefault(name, meaning)
    return found


def _entries(doc, names):
    """{name: meaning} of 'name: meaning' and 'name, other: meaning', at the start of a line or of a sentence."""
    a_name = "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or "(?!)"
    also = r",\s+|\s+and\s+"  # a list of names may go over lines
    start = re.compile(
        rf"(?:^[ \t]*|(?<=[.;)] ))((?:\*{{0,2}}\w+(?:{also}))*\*{{0,2}}(?:{a_name})(?:(?:{also})\w+)*):\s",
        re.MULTILINE,
    )
    found, marks = {}, list(start.finditer(doc))
    for mark, following in zip(marks, [*marks[1:], None]):
        text = doc[mark.end() : following.start() if following else len(doc)]
        text = re.split(r"\n[ \t]*\n|\n[ \t]*[A-Z]\w+:\n", text)[0]
        for name in re.findall(r"\w+", mark[1]):
            if name in names:
                found.setdefault(name, " ".join(text.split()).rstrip(";"))
    return found


def _first_sentence(doc):
    paragraph = " ".join(doc.split("\n\n")[0].split())
    match = re.match(r"(.{20,}?[^A-Z.]\.)(?= [A-Z`(]|$)", paragraph)
    return match[1] if match else paragraph


def _header(path):
    """The first line of a run file's comment."""
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("#") and line.strip("# "):
            return line.strip("# ")
    return ""


def module_line(path):
    """The first line of a module's docstring, by its file; nothing is imported."""
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").splitlines()[0]
