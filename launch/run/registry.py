"""gin, and the only file that knows it: run files and bindings in, an Experiment out.

What a gin file can name is what each of our packages lists in its CONFIGURABLE, their objectives, and what a module
defines that --import=MODULE brings in; such a module needs no gin and no decorator. Every failure is a UserError of one
line: what, where (file:line, when gin knows it) and what to do. A binding that nothing reads is a failure too: it would
otherwise be a silent typo.
"""

import contextlib
import copy
import dataclasses
import difflib
import importlib
import importlib.resources
import importlib.util
import inspect
import io
import pathlib
import re
import tokenize
import types
from collections.abc import Callable, Iterable, Iterator, Sequence

import gin

from launch.run import slips
from launch.run.experiment import Experiment, Init
from launch.storage.workdir import bindings
from paradigm.errors import UserError
from paradigm.storage import expand

# Each says in its CONFIGURABLE what gin files may name; besides, all of its objectives can be named.
PACKAGES = ("paradigm", "t5like", "vision", "multimodal")
SHIPPED = pathlib.Path(str(importlib.resources.files("gin_configs")))

_registered: dict[str, Callable] = {}
_imported: dict[str, types.ModuleType] = {}  # from outside


def parse(gin_files: Sequence[str] = (), gin_params: Sequence[str] = (), imports: Sequence[str] = ()) -> Experiment:
    """The Experiment of these files and then these bindings, later ones winning; `imports` are read first.

    A file is looked for as given, then among the shipped ones ('runs/demo.gin'). gin's global state is cleared first,
    so a notebook may parse as often as it likes.
    """
    paths = [_find(path, f"--gin_file={path}") for path in gin_files]
    sources = [(f"import {module}", f"--import={module}") for module in imports]
    sources += [(_text(path), str(path)) for path in paths]
    return _build(sources, gin_params)


def parse_text(text: str, gin_params: Sequence[str] = (), name: str = "config.gin") -> Experiment:
    """The Experiment of one gin text, such as a run directory's config.gin, with bindings on top."""
    if text.startswith("objective = "):  # experiment.flatten
        made = "an Experiment that was made in Python, which nothing builds again"
        raise UserError(f"{name} lists the settings of {made}: train from gin files, as launch.train.run does")
    return _build([(text, name)], gin_params)


def parse_meta(meta: dict, where: str) -> Experiment:
    """The Experiment of a checkpoint, by what it says of itself.

    Raises:
        UserError: one of weights alone, which launch.convert writes; or as `parse`.
    """
    if "config" not in meta:
        raise UserError(f"{where} holds weights and no run: launch.train --init_from={where} begins one with them")
    return parse_text(meta["config"], name=f"the configuration in {where}")


def configurables(imports: Sequence[str] = ()) -> dict[str, Callable]:
    """{name: class or function} of all that gin files may name, those of `imports` too."""
    names = [*_register_ours(), *(name for module in imports for name in register_module(module))]
    return {name: _registered[name] for name in names}


def shipped(folder: str = "") -> list[str]:
    """The shipped gin files below a folder, as --gin_file and include name them."""
    return sorted(path.relative_to(SHIPPED).as_posix() for path in (SHIPPED / folder).rglob("*.gin"))


def operative_config() -> str:
    """Every binding that the last parsed Experiment was built from, defaults included: gin text that parses again."""
    return gin.operative_config_str(max_line_length=118)


def unset() -> frozenset[str]:
    """The names in `operative_config` that nothing binds: what is there is their default."""
    bound = {name.split("/")[-1] for name in bindings(gin.config_str())}
    return frozenset(name for name in bindings(operative_config()) if name.split("/")[-1] not in bound)


def register(configurable: Callable, name: str | None = None) -> None:
    """Lets gin files name a class or a function. Raises UserError when something else has the name already."""
    name = name or configurable.__name__
    known = _registered.get(name)
    if known is None:
        with gin.unlock_config():  # an experiment may have been parsed before
            gin.external_configurable(configurable, name=name)
        _registered[name] = configurable
    elif known.__module__ != configurable.__module__:
        raise UserError(f"{configurable.__module__}.{name}: {known.__module__} has that name already; choose another")


def register_objectives(module: str) -> list[str]:
    """Registers the Objective subclasses that a package of ours defines and does not hide by a '_'; their names."""
    from paradigm.objective import Objective

    found = importlib.import_module(module)
    own = [v for v in vars(found).values() if inspect.isclass(v) and f"{v.__module__}.".startswith(f"{module}.")]
    objectives = [v for v in own if issubclass(v, Objective) and not v.__name__.startswith("_")]
    for objective in objectives:
        register(objective)
    return [objective.__name__ for objective in objectives]


def register_module(module: str) -> list[str]:
    """Imports a module or package from outside and registers what gin files may want of it; the names.

    That is: dataclasses (objectives, evaluators, recipes of data, optimizers, schedules), Flax modules and functions
    that it defines and does not hide by a '_'; or, of these, what its __all__ lists.
    """
    from flax import linen as nn

    from paradigm.evaluator import Evaluator

    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"--import={module}: {error}; is its folder on PYTHONPATH?") from error
    listed = getattr(found, "__all__", None)
    names = []
    for name, value in vars(found).items():
        own = f"{getattr(value, '__module__', '')}.".startswith(f"{module}.") and not name.startswith("_")
        wanted = inspect.isfunction(value) or (
            inspect.isclass(value) and (dataclasses.is_dataclass(value) or issubclass(value, nn.Module | Evaluator))
        )
        if wanted and (own if listed is None else name in listed):
            register(value, name)
            names.append(name)
    if not names:
        raise UserError(
            f"--import={module}: it defines nothing that a gin file could name: no dataclass (an objective, evaluator, "
            "a recipe of data ...), Flax module or function"
        )
    _imported[module] = found
    return names


def imported() -> dict[str, list[pathlib.Path]]:
    """{module: the files of its source} of what the last parsed Experiment imported from outside."""
    files = {}
    for module in re.findall(r"^import ([\w.]+)", gin.operative_config_str(), re.MULTILINE):
        if module in _imported and (source := getattr(_imported[module], "__file__", None)):
            path = pathlib.Path(source)
            files[module] = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    return files


def references(setting: str, values: Sequence) -> list[str]:
    """'@Name()' of each of the values that a setting of several has; '@scope/Name()' where its binding says so."""
    plain = [f"@{type(value).__name__}()" for value in values]
    try:
        written = gin.query_parameter(setting)
    except ValueError:  # a notebook's
        return plain
    texts = list(map(repr, written)) if isinstance(written, tuple | list) else []
    return texts if [re.sub(r"@(\w+/)+", "@", text) for text in texts] == plain else plain


def _build(sources: Sequence[tuple[str, str]], params: Sequence[str]) -> Experiment:
    """Parses each (text, origin), then the bindings, and builds the Experiment."""
    gin.clear_config()
    _register_ours()
    for text, origin in sources:
        for piece in _pieces(text, origin):
            _parse(*piece)
    # In files, what is bound must be referred to; a binding on the command line may well cut a reference off.
    bound = gin.config_str()
    _refuse_unread(_bound(bound), set(re.findall(r"[@%](?:\w+/)*(\w+)", bound)) | {"Experiment"})
    _refuse_scopes(bound)
    given = [piece for param in params for piece in _pieces(param, "--gin_param")]
    for piece in given:
        _parse(*piece)
    _refuse_scopes("\n".join(text for text, _ in given))
    if wrong := list(_wrong_bindings(gin.config_str())):
        raise UserError("; ".join(wrong))
    with _in_one_line(sources[-1][1] if sources else "--gin_param"):
        gin.finalize()
        experiment = gin.get_configurable("Experiment")()
    parts = [getattr(experiment, field.name) for field in dataclasses.fields(experiment)]  # `validate` sees to its own
    if wrong := [*slips.wrong_kinds(experiment)] or [*slips.wrong_values(parts)]:
        raise UserError("; ".join(wrong))
    _refuse_unread(set().union(*(_bound(text) for text, _ in given)), _bound(gin.operative_config_str()))
    return experiment


def _register_ours() -> list[str]:
    register(Experiment)
    register(Init)
    ours = ["Experiment", "Init"]
    for package in PACKAGES:
        for module, names in importlib.import_module(package).CONFIGURABLE.items():
            for name in names:
                register(getattr(importlib.import_module(f"{package}.{module}"), name), name)
                ours.append(name)
        for room in ("objectives", "tasks"):
            if importlib.util.find_spec(f"{package}.{room}"):
                ours += register_objectives(f"{package}.{room}")
    return ours


def _parse(text: str, origin: str) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        if (match := re.match(r"(\w+)\s*=", line)) and match[1] in _registered:
            raise UserError(f"{origin}:{number}: {match[1]} is no setting: write {match[1]}.parameter = value")
    for number, slip in slips.references(text):
        raise UserError(f"{origin}:{number}: {slip}")
    stream = io.StringIO(text)
    stream.name = origin  # gin names it in its errors
    with _in_one_line(origin, text):
        gin.parse_config(stream)


def _bound(text: str) -> set[str]:
    """The macros and configurables that a gin text binds: 'total_steps = 3' and 'valid/Cosine.peak = 1' -> names."""
    return set(re.findall(r"^(?:\w+/)*(\w+)(?:\.\w+)? *=", text, re.MULTILINE))


def _wrong_bindings(text: str) -> Iterator[str]:
    """What is wrong with values of another kind than their settings have, before a constructor fails of them."""
    for scope, name, setting in re.findall(r"^((?:\w+/)*)(\w+)\.(\w+) *=", text, re.MULTILINE):
        value = gin.query_parameter(f"{scope}{name}.{setting}")
        if name in _registered and (said := slips.wrong_kind(_registered[name], setting, value, _made(value))):
            yield said


def _made(value) -> type | None:
    """The class of what a binding's value @Name() makes; None of other values, and where a function makes it."""
    made = value.configurable.wrapped if isinstance(value, gin.config.ConfigurableReference) else None
    return made if isinstance(made, type) else None


def _refuse_unread(bound: set[str], read: set[str]) -> None:
    """Raises UserError for a macro or a configurable that is bound while nothing that is built reads it."""
    for name in sorted(bound - read):
        if name in _registered:
            raise UserError(f"{name} has bindings but nothing refers to @{name}(): remove them, or refer to it; "
                            f"this experiment is made of {', '.join(sorted(read & _registered.keys()))}")  # fmt: skip
        # Of several that have such a setting, first the experiment, then what it is made of.
        owners = sorted(_registered, key=lambda owner: (owner != "Experiment", owner not in read, owner))
        near = [f"{owner}.{name}" for owner in owners if name in _parameters(_registered[owner])]
        if lost := _close(name, _used() - _bound(gin.config_str())):
            raise UserError(
                f"%{lost[0]} is used but not set, and '{name}' is set but nothing reads it: give both one name"
            )
        near = near or [f"'{other}'" for other in _close(name, (read | _used()) - _registered.keys())]
        raise UserError(f"'{name}' is set but nothing reads it{f', did you mean {near[0]}?' if near else ''}")


def _refuse_scopes(text: str) -> None:
    """Raises UserError for a binding in a scope, 'train/Cosine.peak', that no reference @train/... opens."""
    opened = set(re.findall(r"@((?:\w+/)+)\w", gin.config_str()))
    for scope, name in re.findall(r"^((?:\w+/)+)(\w+\.\w+) *=", text, re.MULTILINE):
        if not any(f"/{scope}" in f"/{other}" for other in opened):
            near = "".join(f", did you mean {other}{name}?" for other in _close(scope, opened))
            where = f"refer to @{scope}{name.split('.')[0]}(), or leave {scope} out"
            raise UserError(f"{scope}{name} is set but nothing reads it{near or f': {where}'}")


def _used() -> set[str]:
    """The macros that the parsed text refers to."""
    return set(re.findall(r"%(?:\w+/)*(\w+)", gin.config_str()))


def _pieces(text: str, origin: str) -> Iterator[tuple[str, str]]:
    """(text, origin) of what stands between a text's includes, its lines where they were, and of each file that it
    includes, in order. What it imports is registered, before gin meets the names."""
    lines, begin = text.splitlines(), 0
    for number, line in enumerate(lines):
        if match := re.match(r"import\s+([\w.]+)", line):
            register_module(match[1])
        if match := re.match(r"include\s+['\"](.*)['\"]", line):
            yield "\n" * begin + "\n".join(lines[begin:number]), origin
            path, begin = _find(match[1], f"{origin}:{number + 1}: include '{match[1]}'"), number + 1
            included = _text(path)
            if re.search(r"^include\s", included, re.MULTILINE):
                fix = f"leave the line out, and give --gin_file={match[1]} before this file"
                raise UserError(
                    f"{path}, included by {origin}:{number + 1}, includes others: includes go one deep; {fix}"
                )
            yield from _pieces(included, str(path))
    yield "\n" * begin + "\n".join(lines[begin:]), origin


def _text(path: pathlib.Path) -> str:
    """What a gin file says, whatever the machine's locale; an editor may have marked it as UTF-8."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None


def _find(path: str, what: str) -> pathlib.Path:
    """The gin file as given, else the shipped one of that name."""
    for candidate in (expand(path), SHIPPED / path):
        if candidate.is_file():
            return candidate
    raise UserError(f"{what}: no such file here or in {SHIPPED}{_nearest_file(path)}")


def _nearest_file(path: str) -> str:
    """', did you mean ...?': a file of that name in another folder, else one spelled like it, here or shipped."""
    folder, name = expand(path).parent, pathlib.PurePath(path).name
    files = shipped("runs") + [file for file in shipped() if not file.startswith("runs/")]
    named = [file for file in files if pathlib.PurePath(file).stem == name.removesuffix(".gin")]
    here = [file.name for file in folder.glob("*.gin")] if folder.is_dir() else []
    if expand(path).is_dir() and (inside := sorted(expand(path).glob("*.gin"))):
        return f": it is a folder; one of its files is {inside[0]}"
    if (SHIPPED / path).is_dir() and (inside := shipped(path)):
        return f": it is a folder; its files are {', '.join(inside)}"
    if near := [str(pathlib.PurePath(path).with_name(file)) for file in _close(name, here)]:
        return f", did you mean '{near[0]}'?"
    if near := _close(path, named) or named or _close(path, files):
        return f", did you mean '{near[0]}'?"
    return "; python -m launch.train --list names those that are shipped"


# --- gin's exceptions, in one line -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _in_one_line(origin: str, text: str = "") -> Iterator[None]:
    """Turns what gin and the constructors raise into UserErrors. A failure of another kind is ours and passes."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).split("\n  In ")[0]) from None
    except SyntaxError as error:
        line = _line(text, error.lineno) or (error.text or "").strip()
        raise UserError(f"{error.filename or origin}:{error.lineno}: `{line}`: {slips.explain(line)}") from None
    except tokenize.TokenError as error:
        if "EOF" not in error.args[0]:  # of one line, as Python 3.12 and later tell it
            line = _line(text, error.args[1][0])
            raise UserError(f"{origin}:{error.args[1][0]}: `{line}`: {slips.explain(line)}") from None
        lines = [number for number, line in enumerate(text.splitlines(), 1) if re.match(r"[\w/.]+\s*=", line)]
        at = lines[-1] if lines else error.args[1][0]
        raise UserError(f"{origin}:{at}: {slips.open_bracket(_line(text, at))}") from None
    except RecursionError:
        raise UserError(f"{origin}: a macro or a configurable is set to itself, or to what refers to it") from None
    except (AttributeError, ArithmeticError) as error:  # of a constructor that was given what it cannot use
        if not (said := _wrong_part(error)):
            raise
        raise UserError(f"{origin}: {said}") from error
    except (ValueError, TypeError, OSError, ImportError) as error:
        said = _wrong_part(error) if isinstance(error, TypeError) else ""
        raise UserError(f"{origin}: {said}" if said else _explain(str(error), origin)) from error


def _line(text: str, number: int | None) -> str:
    lines = text.splitlines()
    return lines[number - 1].strip() if number and number <= len(lines) else ""


def _wrong_part(error: Exception) -> str:
    """What a constructor was given that it cannot use; "" where no value of a gin text is to blame."""
    called = re.search(r"In call to configurable '(\w+)'", str(error))
    every = re.findall(r"^((?:\w+/)*\w+\.\w+) *=", gin.config_str(), re.MULTILINE) if called else ()
    every = {name: gin.query_parameter(name) for name in every}
    given = {name: value for name, value in every.items() if name.split("/")[-1].startswith(f"{called[1]}.")}
    made = {name: copy.deepcopy(value) for name, value in given.items()}  # as gin does it
    if isinstance(error, ArithmeticError):
        zero = lambda values: [name for name, value in values.items() if type(value) in (int, float) and not value]
        sizes = [name for name in zero(every) if slips.wrong_number(name.split(".")[1], 0)]  # of what it is made of
        zeros = [f"{name} = {every[name]!r}" for name in zero(made) or sizes]
        return f"{' or '.join(zeros)} must be above 0: it is divided by" if zeros else ""
    words = re.findall(r"\w+", str(error).splitlines()[0])  # the kinds of what did not go together among them
    told = {name: value for name, value in given.items() if type(made[name]).__name__ in words}
    others = {name: value for name, value in told.items() if not isinstance(made[name], int | float)}
    wrong = " or ".join(f"{name} = {value!r}" for name, value in (others or told).items())
    takes = f"{wrong} is of another kind than {called[1]} takes" if wrong else ""
    return wrong and f"{takes}: write @NAME() for what gin makes, and a number without quotes"


def _explain(message: str, origin: str) -> str:
    first = message.splitlines()[0]
    where = re.search(r'In file "(.*?)", line (\d+)', message)
    where = f"{where[1]}:{where[2]}: " if where else f"{origin}: "
    called = re.search(r"In call to configurable '(\w+)'", message)

    if match := re.match(r"No configurable matching (?:reference )?'@?(?:.*/)?([\w.]+)(?:\(\))?'", first):
        return f"{where}unknown name '{match[1]}'{_nearest(match[1], _registered)}"
    match = re.match(r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", first)
    if match and match[1] in _registered:
        if match[2] in ("vocab_size", "extra_ids"):  # in configurations of before
            return f"{where}{match[1]} has no parameter '{match[2]}': the data's vocabulary says it, so leave it out"
        return (
            f"{where}{match[1]} has no parameter '{match[2]}'{_nearest(match[2], _parameters(_registered[match[1]]))}"
        )
    if match := re.match(r"No bindings specified for '([\w./]+)/gin.macro'", first):
        if "." in match[1]:
            return f"{origin}: %{match[1]} is no macro: write name = VALUE, and %name for both settings"
        macros = _bound(gin.config_str()) - _registered.keys()
        near = "".join(f"did you mean %{other}? Else " for other in _close(match[1], macros))
        return f"{origin}: %{match[1]} is used but not set: {near}{_how_to_set(match[1])}"
    if match := re.match(r"([\w.]+) set to `%gin.REQUIRED`", first):
        return f"{origin}: {match[1]} is required and not set: {_how_to_set(match[1])}"
    if called and (match := re.search(r"missing \d+ required [\w-]+ arguments?: '(\w+)'", first)):
        name = f"{called[1]}.{match[1]}"
        return f"{origin}: {name} is required and not set: {_how_to_set(name)}"
    if match := re.search(r"got an unexpected keyword argument '(\w+)'", first):
        fields = _parameters(_registered[called[1]]) if called else ()
        return f"{origin}: {called[1] if called else first} has no parameter '{match[1]}'{_nearest(match[1], fields)}"
    return f"{origin}: {called[1] + ': ' if called else ''}{first}"


def _how_to_set(name: str) -> str:
    """The file that should bind `name`, and a flag that would; both from a shipped file that binds it."""
    for path in sorted(SHIPPED.rglob("*.gin"), key=lambda path: (not path.is_relative_to(SHIPPED / "runs"), path)):
        # A value, and no macro, which is set elsewhere.
        if match := re.search(rf"^{re.escape(name)} *= *([^%\n]*?) *(#.*)?$", path.read_text("utf-8"), re.MULTILINE):
            shipped = path.relative_to(SHIPPED).as_posix()
            return f'the run file should set it, as {shipped} does, or a flag, as in --gin_param="{name} = {match[1]}"'
    return f'the run file should set it, or a flag, as in --gin_param="{name} = VALUE"'


def _parameters(configurable: Callable) -> list[str]:
    return [name for name in inspect.signature(configurable).parameters if name not in ("self", "parent", "overrides")]


def _nearest(name: str, options: Iterable[str]) -> str:
    """', did you mean ...?', or what there is to choose from."""
    options = sorted(options)
    near = _close(name, options)
    return f", did you mean '{near[0]}'?" if near else f"; there are: {', '.join(options)}"


def _close(name: str, options: Iterable[str]) -> list[str]:
    """[the option that is spelled most like `name`], or []."""
    return difflib.get_close_matches(name, sorted(options), 1, 0.5)
