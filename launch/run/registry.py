"""gin, and the only file that knows it: run files and bindings in, an Experiment out.

What a gin file can name is what each of our packages lists in its CONFIGURABLE, their objectives, and those of any
module that --import=MODULE brings in; such a module needs no gin and no decorator. Every failure is a UserError of one
line: what, where (file:line, when gin knows it) and what to do. A binding that nothing reads is a failure too: it would
otherwise be a silent typo.
"""

import contextlib
import difflib
import importlib
import importlib.resources
import importlib.util
import inspect
import io
import pathlib
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence

import gin

from launch.run.experiment import Experiment, Init
from paradigm.errors import UserError
from paradigm.storage import expand

# Each says in its CONFIGURABLE what gin files may name; besides, all of its objectives can be named.
PACKAGES = ("paradigm", "t5like", "vision", "multimodal")
SHIPPED = pathlib.Path(str(importlib.resources.files("gin_configs")))

_registered: dict[str, Callable] = {}


def parse(gin_files: Sequence[str] = (), gin_params: Sequence[str] = (), imports: Sequence[str] = ()) -> Experiment:
    """The Experiment of these files and then these bindings, later ones winning; `imports` are read first.

    A file is looked for as given, then among the shipped ones ('runs/demo.gin'). gin's global state is cleared first,
    so a notebook may parse as often as it likes.
    """
    paths = [_find(path, f"--gin_file={path}") for path in gin_files]
    sources = [(f"import {module}", f"--import={module}") for module in imports]
    sources += [(path.read_text("utf-8"), str(path)) for path in paths]
    return _build(sources, gin_params)


def parse_text(text: str, gin_params: Sequence[str] = (), name: str = "config.gin") -> Experiment:
    """The Experiment of one gin text, such as a run directory's config.gin, with bindings on top."""
    return _build([(text, name)], gin_params)


def operative_config() -> str:
    """Every binding that the last parsed Experiment was built from, defaults included: gin text that parses again."""
    return gin.operative_config_str(max_line_length=118)


def register(configurable: Callable, name: str | None = None) -> None:
    """Lets gin files name a class or a function. Raises UserError when something else has the name already."""
    name = name or configurable.__name__
    known = _registered.get(name)
    if known is None:
        gin.external_configurable(configurable, name=name)
        _registered[name] = configurable
    elif known.__module__ != configurable.__module__:
        raise UserError(f"{configurable.__module__}.{name}: {known.__module__} has that name already; choose another")


def register_objectives(module: str) -> None:
    """Imports a module or package and registers the Objective subclasses that it defines and does not hide by a '_'."""
    from paradigm.objective import Objective

    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"--import={module}: {error}; is its folder on PYTHONPATH?") from error
    own = [v for v in vars(found).values() if inspect.isclass(v) and f"{v.__module__}.".startswith(f"{module}.")]
    objectives = [v for v in own if issubclass(v, Objective) and not v.__name__.startswith("_")]
    if not objectives:
        raise UserError(f"--import={module}: it defines no subclass of paradigm.objective.Objective to register")
    for objective in objectives:
        register(objective)


def _build(sources: Sequence[tuple[str, str]], params: Sequence[str]) -> Experiment:
    """Parses each (text, origin), then the bindings, and builds the Experiment."""
    gin.clear_config()
    register(Experiment)
    register(Init)
    for package in PACKAGES:
        for module, names in importlib.import_module(package).CONFIGURABLE.items():
            for name in names:
                register(getattr(importlib.import_module(f"{package}.{module}"), name), name)
        if importlib.util.find_spec(f"{package}.objectives"):
            register_objectives(f"{package}.objectives")
    for text, origin in sources:
        _parse(_look_ahead(text, origin), origin)
    # In files, what is bound must be referred to; a binding on the command line may well cut a reference off.
    bound = gin.config_str()
    _refuse_unread(_bound(bound), set(re.findall(r"[@%](?:\w+/)*(\w+)", bound)) | {"Experiment"})
    for param in params:
        _parse(param, "--gin_param")
    with _in_one_line(sources[-1][1] if sources else "--gin_param"):
        gin.finalize()
        experiment = gin.get_configurable("Experiment")()
    _refuse_unread(set().union(*map(_bound, params)), _bound(gin.operative_config_str()))
    return experiment


def _parse(text: str, origin: str) -> None:
    stream = io.StringIO(text)
    stream.name = origin  # gin names it in its errors
    with _in_one_line(origin):
        gin.parse_config(stream)


def _bound(text: str) -> set[str]:
    """The macros and configurables that a gin text binds: 'total_steps = 3' and 'valid/Cosine.peak = 1' -> names."""
    return set(re.findall(r"^(?:\w+/)*(\w+)(?:\.\w+)? *=", text, re.MULTILINE))


def _refuse_unread(bound: set[str], read: set[str]) -> None:
    """Raises UserError for a macro or a configurable that is bound while nothing that is built reads it."""
    for name in sorted(bound - read):
        if name in _registered:
            raise UserError(f"{name} has bindings but nothing refers to @{name}(): remove them, or refer to it; "
                            f"this experiment is made of {', '.join(sorted(read & _registered.keys()))}")  # fmt: skip
        near = [f"{owner}.{name}" for owner in sorted(_registered) if name in _parameters(_registered[owner])]
        raise UserError(f"'{name}' is set but nothing reads it{f', did you mean {near[0]}?' if near else ''}")


def _look_ahead(text: str, origin: str) -> str:
    """The text with the paths of its includes resolved; what it imports is registered, before gin meets the names."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if match := re.match(r"import\s+([\w.]+)", line):
            register_objectives(match[1])
        if match := re.match(r"include\s+['\"](.*)['\"]", line):
            path = _find(match[1], f"{origin}:{number + 1}: include '{match[1]}'")
            if re.search(r"^include\s", path.read_text("utf-8"), re.MULTILINE):
                raise UserError(f"{path}, included by {origin}:{number + 1}, includes others: includes go one deep")
            lines[number] = f"include {str(path.absolute())!r}"
    return "\n".join(lines)


def _find(path: str, what: str) -> pathlib.Path:
    """The gin file as given, else the shipped one of that name."""
    for candidate in (expand(path), SHIPPED / path):
        if candidate.is_file():
            return candidate
    available = [p.relative_to(SHIPPED).as_posix() for p in SHIPPED.rglob("*.gin")]
    raise UserError(f"{what}: no such file here or in {SHIPPED}{_nearest(path, available)}")


# --- gin's exceptions, in one line -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _in_one_line(origin: str) -> Iterator[None]:
    """Turns what gin and the constructors raise into UserErrors. A failure of another kind is ours and passes."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).split("\n  In ")[0]) from None
    except SyntaxError as error:
        where = f"{error.filename or origin}:{error.lineno}"
        line = (error.text or "").strip()
        raise UserError(f"{where}: {error.msg.splitlines()[0]} in `{line}`; bindings read Name.parameter = value, "
                        "with texts in quotes") from None  # fmt: skip
    except tokenize.TokenError as error:
        raise UserError(f"{origin}:{error.args[1][0]}: {error.args[0]}: is a bracket or a quote left open?") from None
    except (ValueError, TypeError, OSError) as error:
        raise UserError(_explain(str(error), origin)) from error


def _explain(message: str, origin: str) -> str:
    first = message.splitlines()[0]
    where = re.search(r'In file "(.*?)", line (\d+)', message)
    where = f"{where[1]}:{where[2]}: " if where else f"{origin}: "
    called = re.search(r"In call to configurable '(\w+)'", message)

    if match := re.match(r"No configurable matching (?:reference )?'@?(?:.*/)?([\w.]+)(?:\(\))?'", first):
        return f"{where}unknown name '{match[1]}'{_nearest(match[1], _registered)}"
    if match := re.match(r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", first):
        if match[2] in ("vocab_size", "extra_ids"):  # in configurations of before
            return f"{where}{match[1]} has no parameter '{match[2]}': the data's vocabulary says it, so leave it out"
        return (
            f"{where}{match[1]} has no parameter '{match[2]}'{_nearest(match[2], _parameters(_registered[match[1]]))}"
        )
    if match := re.match(r"No bindings specified for '(\w+)/gin.macro'", first):
        return f"{origin}: %{match[1]} is used but not set: {_how_to_set(match[1])}"
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
    near = difflib.get_close_matches(name, options, 1, 0.5)
    return f", did you mean '{near[0]}'?" if near else f"; there are: {', '.join(options)}"
