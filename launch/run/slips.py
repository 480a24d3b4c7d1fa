"""What people mistype in gin files, in plain words with the fix: gin's own errors speak of nodes and tokens."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator

from flax import linen as nn

from paradigm import capabilities
from paradigm.errors import UserError
from paradigm.objective import REQUIRED, Objective
from paradigm.schedule import Schedule

_NUMBER = r"[-+]?[\d.,_]+(e[-+]?\d+)?"
_QUOTES = "\"'"


def explain(line: str) -> str:
    """What is wrong with a line that gin cannot read, and what to write instead."""
    line = re.sub(r"\s+#.*", "", line.strip())
    if re.search("[\u201c\u201d\u2018\u2019]", line):
        return "curly quotes: write straight ones, ' or \""
    if re.match(r"@[\w/.]+\s*=", line):
        return f"a binding has no @ on its left: write {line[1:]}"
    if match := re.match(r"([\w/.]+)\s*(:|==|[-+*/]=)\s*(\S.*)$", line):
        return f"a value is set with one `=`: write {match[1]} = {match[3]}"
    if match := re.match(r"([\w/.]+)\s+([^=\s][^=]*)$", line):
        return f"the `=` is missing: write {match[1]} = {match[2]}"
    match = re.match(r"([\w/.]+)\s*=\s*(.*)$", line)
    if not match:
        return "a line reads Name.parameter = value, name = value, or include 'FILE'"
    name, value = match.groups()
    if not value:
        return f"the value is missing: write {name} = VALUE"
    if value[-1] in _QUOTES and re.fullmatch(r"\s*(,\s*)+", _unquoted(value)):
        return f"a line has one value, and several stand in brackets: write {name} = ({value})"
    if value[0] in _QUOTES and (len(value) == 1 or value[-1] != value[0]):
        return f"the quote is not closed: write {name} = {value[0]}{value[1:].strip(_QUOTES)}{value[0]}"
    if value[-1] in _QUOTES and value[0] not in _QUOTES + "([{":
        return f"the quote is not opened: write {name} = {value[-1]}{value}"
    if value.endswith((";", ",")):
        return f"nothing stands behind a value: write {name} = {value[:-1]}"
    if (right := {"true": "True", "false": "False", "none": "None", "null": "None"}.get(value.lower())) is not None:
        return f"{value} is written {right}: write {name} = {right}"
    if match := re.match(r"@[\w/]+\(.+\)$", value):
        called, inside = value[:-1].split("(", 1)
        key, _, set_to = inside.partition("=")
        how = (
            f"{called.split('/')[-1].lstrip('@')}.{key.strip()} = {set_to.strip()}"
            if set_to
            else "Name.parameter = value"
        )
        return f"nothing stands between the brackets of {called}(): its settings are lines of their own, as in {how}"
    if match := re.match(r"([A-Za-z_]\w*(/\w+)*)\(\)$", value):
        return f"what is made by gin has an @: write {name} = @{value}"
    if re.fullmatch(_NUMBER + r"\s*([*/+-]|\*\*)\s*" + _NUMBER, value):
        return f"gin does not calculate: write {name} = the result of {value}"
    if re.fullmatch(_NUMBER, value) and "," in value:
        return (
            f"numbers have no commas, and a tuple has brackets: write {name} = {value.replace(',', '')}, or ({value})"
        )
    if value[0] in "([{":
        word = next(
            (w for w in re.findall(r"(?<![\w@%/'\".])[A-Za-z_][\w./:-]*", _unquoted(value)) if not _known(w)), ""
        )
        if word:
            lower = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(word.lower())
            return f"{word} is written {lower}" if lower else f"text stands in quotes: write '{word}'"
        return "the brackets do not close as they open, or a comma is missing between two values"
    if re.match(r"[@%]", value):
        return f"nothing stands behind {value.split()[0]}: a line has one value"
    if re.match(r"[-+]?[\d.]", value) and " " in value:
        return f"a line has one value, and several stand in brackets: write {name} = ({', '.join(value.split())})"
    macro = f", or %{value} if that is a name that is set elsewhere" if re.fullmatch(r"\w+", value) else ""
    return f"text stands in quotes: write {name} = '{value.strip(_QUOTES)}'{macro}"


def open_bracket(line: str) -> str:
    """The same for a text that ended within a bracket or a quote, which the last binding opened."""
    return f"a bracket or a quote is left open in `{line.strip()}`: close it"


def references(text: str) -> Iterator[tuple[int, str]]:
    """(line number, what is wrong) of each value @Name without (): the class itself, where all want what it makes."""
    for number, line in enumerate(text.splitlines(), 1):
        line = _unquoted(line).split("#")[0]
        for match in re.finditer(r"@((?:\w+/)*[A-Za-z_][\w.]*)(?![\w./(])", line):
            if not re.match(r"\s*@", line):
                yield number, f"@{match[1]} is the class itself: write @{match[1]}() for what it makes"


def _unquoted(line: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"", lambda match: " " * len(match[0]), line)


def _known(word: str) -> bool:
    return word in ("True", "False", "None") or bool(re.fullmatch(_NUMBER, word))


# --- values of the wrong kind ----------------------------------------------------------------------------------------

_PLAIN = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", Schedule: "a schedule"}


def wrong_kinds(value, name: str = "") -> Iterator[str]:
    """What is wrong with settings, at any depth, that are plain by their annotation (int, float, bool, str, tuple, and
    None beside them) and were given a value of another kind: "'64'" where a number is wanted."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from wrong_kinds(item)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return
    owner = type(value).__name__
    for field in dataclasses.fields(value):
        if not field.init or (hasattr(value, "clone") and field.name in ("parent", "name")):  # a Flax module's
            continue
        given = getattr(value, field.name)
        kinds = _kinds(field.type)
        if kinds and not _fits(given, kinds):
            yield f"{owner}.{field.name} = {_shown(given)} {_advice(given, kinds)}"
        else:
            yield from wrong_kinds(given)


_SIZES = "(.*_)?(width|heads|size|patch|hidden|output|bottleneck|d_model|d_ff)"
_RANGES = (  # settings of one name mean one thing, whoever has them; the first that fits counts
    (r"(.*_)?(dropout|drop_path|smoothing|b1|b2)", "from 0 to below 1", lambda x: 0 <= x < 1),
    (r"(.*_)?momentum|mask_ratio", "from 0 to 1", lambda x: 0 <= x <= 1),
    (r"top_p|decay_rate", "above 0 and at most 1", lambda x: 0 < x <= 1),
    (rf"{_SIZES}|top_k|clipping_threshold|trust_coefficient", "above 0", lambda x: x > 0),
    (r"(.*_)?seed", "from 0 to below 2^32", lambda x: 0 <= x < 2**32),  # more bits would not reach a key of jax's
    (r"(.*_)?(weight|temperature|learning_rate|decay|eps|std|z_loss|beta)", "0 or more", lambda x: x >= 0),
    (r"redundancy|invariance|variance|covariance|koleo|detection|spans|contrastive|captioning|distillation",
     "0 or more", lambda x: x >= 0),
)  # fmt: skip
_TEXTS = {"dtype": ("float32", "bfloat16", "float16"), "init_std": ("xavier",)}  # that settings of one name can be
_FROM_THE_END = r"(.*_)?layer|asked_as"  # whole numbers that count from the end where they are negative


def wrong_values(value) -> Iterator[str]:
    """What is wrong with numbers and texts, at any depth, that no setting of their name can have: a dropout of 1.5, a
    negative count, infinity. A default is its owner's to choose. A constructor says what more it wants."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from wrong_values(item)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return
    for field in dataclasses.fields(value):
        if not field.init or (hasattr(value, "clone") and field.name in ("parent", "name")):
            continue
        given = getattr(value, field.name)
        if isinstance(given, str) and given not in (known := _TEXTS.get(field.name, (given,))):
            yield f"{type(value).__name__}.{field.name} = {given!r}: the texts that it can be are {', '.join(known)}"
        elif isinstance(given, bool) or not isinstance(given, int | float):
            yield from wrong_values(given)
        elif given != field.default and (said := wrong_number(field.name, given)):
            yield f"{type(value).__name__}.{field.name} = {given} must be {said}"


def wrong_number(name: str, value) -> str:
    if not math.isfinite(value):
        return "a finite number"
    for pattern, said, holds in _RANGES:
        if re.fullmatch(pattern, name):
            return "" if holds(value) else said
    return "0 or more" if isinstance(value, int) and value < 0 and not re.fullmatch(_FROM_THE_END, name) else ""


_MADE = ("evaluators", "init")  # of an experiment: several @NAME(), of which `check_parts` says what a text should be


def wrong_kind(owner, name: str, value, made: type | None = None) -> str:
    """What is wrong with a value that a dataclass's setting is bound to, before it is made; "" for nothing to say.

    made: of a value @NAME() the class of what it makes.
    """
    field = (
        next((f for f in dataclasses.fields(owner) if f.name == name), None)
        if dataclasses.is_dataclass(owner)
        else None
    )
    kinds = _kinds(field.type) if field else ()
    plain = isinstance(value, bool | int | float | str | tuple | list | dict | type(None))
    if not kinds or not (plain or made) or (name in _MADE and isinstance(value, str)):
        return ""
    fits = issubclass(made, kinds) if made else _fits(value, kinds)
    return "" if fits else f"{owner.__name__}.{name} = {value!r} {_advice(value, kinds)}"


def check_parts(experiment) -> None:
    """Raises UserError for an Experiment that is made of other things than it takes: a text, None or another's part."""
    if wrong := list(_wrong_parts(experiment)):
        raise UserError("; ".join(wrong))


def _wrong_parts(experiment) -> Iterator[str]:
    parts = {"objective": ("batch_spec", "MAE"), "optimizer": ("init", "AdamW"), "evaluators": ("check", "Probes")}
    parts |= {"init": ("path", "Init"), "adapt": ("interceptor", "LoRA")}
    for name, (method, example) in parts.items():
        given = getattr(experiment, name)
        if name == "adapt" and given is None:
            given = getattr(experiment.objective, name, None)
        if name in _MADE and isinstance(given, str):
            given = (given,)
        if name in _MADE and not isinstance(given, tuple | list):
            yield f"Experiment.{name} = {_shown(given)} {_advice(given, (tuple,))}"
            continue
        for one in given if name in _MADE else [given]:
            fits = isinstance(one, Objective) if name == "objective" else hasattr(one, method)
            if isinstance(one, nn.Module) or not (fits or (name == "adapt" and one is None)):
                what = (
                    f"Experiment.{name} = {_shown(one)} is no {'adaptation' if name == 'adapt' else name.rstrip('s')}"
                )
                yield f"{what}: write @NAME(), as in @{example}(); launch.train --list has the names"
    if isinstance(experiment.objective, Objective):
        for part in capabilities.parts(experiment.objective):
            kind = type(part.objective)
            if lacking := list(_lacking(kind)):
                yield f"{kind.__name__} lacks {', '.join(lacking)}: see paradigm/objective.py"
    if not callable(getattr(experiment.data, "build", None)):
        yield f"Experiment.data = {_shown(experiment.data)} is no data: write @NAME(), as in @TextData()"


def _lacking(kind) -> Iterator[str]:
    """The members without a default that a class of objectives does not give."""
    has = lambda name: getattr(kind, name) is not getattr(Objective, name)
    yield from (name for name in REQUIRED if not has(name) and not (name == "forward_flops" and has("flops")))
    if not (has("loss") or has("encode") and has("full_batch_loss")):
        yield "loss"


def _kinds(annotation) -> tuple:
    """The types of an annotation, NoneType among them; () where one is neither plain nor a dataclass, and nothing can
    be said."""
    if isinstance(annotation, str):
        named = {kind.__name__: kind for kind in (*_PLAIN, tuple)} | {"None": types.NoneType}
        parts = [part.split("[")[0].strip() for part in re.sub(r"\[.*\]", "", annotation).split("|")]
        return tuple(named[part] for part in parts) if all(part in named for part in parts) else ()
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    parts = tuple(typing.get_origin(part) or part for part in parts)
    known = lambda part: part in (*_PLAIN, tuple, types.NoneType) or dataclasses.is_dataclass(part)
    return parts if all(map(known, parts)) else ()


def _fits(value, kinds) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int):
        return int in kinds or float in kinds
    if isinstance(value, list):
        return tuple in kinds
    return isinstance(value, kinds)


def _shown(value) -> str:
    return f"@{type(value).__name__}()" if dataclasses.is_dataclass(value) else repr(value)


def _advice(value, kinds) -> str:
    named = _PLAIN | {types.NoneType: "None", tuple: "a tuple"}
    wanted = " or ".join(named.get(kind, f"@{kind.__name__}()") for kind in kinds)
    if isinstance(value, str) and kinds[0] is tuple:
        return f"is a text where several are wanted: write ({value!r},) for one"
    if isinstance(value, str) and not isinstance(value, kinds):
        return f"is a text where {wanted} is wanted: leave the quotes out"
    if kinds[0] is tuple:
        return f"is no tuple: a tuple of one has a comma, as in ({_shown(value)},)"
    return f"is not {wanted}"
