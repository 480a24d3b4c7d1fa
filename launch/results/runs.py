"""Runs as they lie on a disk or in a bucket: what each was set to, what it reached, and what it took."""

import dataclasses
import difflib
import functools
import json
import math
import re
import statistics
from typing import Any

from launch.storage import filesystem
from launch.storage.workdir import bindings, config_of
from paradigm.errors import UserError
from paradigm.storage import retry

WHAT_A_RUN_IS = "a run directory is the --workdir of launch.train and holds config.gin and metrics.jsonl"
SEED = ("Experiment.seed", "seed")  # as a run file has it, and as a notebook's run


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run directory. Its numbers are None where the run has none.

    path: where it lies. settings: {name: value as written}, macros put in. rows: of metrics.jsonl. parameters: {"all",
    "trained"} counts, {} of a run that was started before they were kept.
    """

    path: Any
    settings: dict[str, str]
    rows: list[dict] = dataclasses.field(repr=False)
    parameters: dict

    def setting(self, name, default=None):
        """The value of a field of Experiment, as written."""
        return self.settings.get(f"Experiment.{name}", self.settings.get(name, default))

    @property
    def objective(self):
        return class_name(self.setting("objective", "?"))

    @property
    def adaptation(self):
        """The class of the objective's adaptation; '' where there is none."""
        values = [value for name, value in self.settings.items() if is_adaptation(name) and value != "None"]
        return ", ".join(map(class_name, values))

    @property
    def seed(self):
        return self.setting("seed")

    @property
    def total_steps(self):
        return int(self.setting("total_steps", 0))

    @property
    def step(self):
        """Of the last row."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def ended(self):
        """Whether it was evaluated at its last step."""
        evaluated = (row["step"] for row in self.rows if any(name.startswith("valid/") for name in row))
        return max(evaluated, default=0) >= max(self.total_steps, 1)

    @property
    def best_by(self):
        """(metric, 'min' or 'max') by which its best checkpoint is chosen."""
        return tuple(
            str(self.setting(f"best_{k}", d)).strip("'\"") for k, d in (("metric", "valid/loss"), ("mode", "min"))
        )

    @functools.cached_property
    def metrics(self):
        """Names of all numbers in its rows, but for those of the clock."""
        return {name: None for row in self.rows for name in row if name not in ("step", "speed")}.keys()

    def curve(self, metric):
        """[(step, number)] in order; nan where it was not finite."""
        return [(row["step"], _number(row[metric])) for row in self.rows if metric in row]

    def last(self, metric):
        """The number in the last row that has it."""
        return next((value for _, value in reversed(self.curve(metric))), None)

    def best(self, metric, mode):
        """The best of all evaluations; 'min' or 'max' says which that is."""
        values = [value for _, value in self.curve(metric)]
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return math.nan if values else None
        return min(finite) if mode == "min" else max(finite)

    @property
    def trained_percent(self):
        return 100 * self.parameters["trained"] / self.parameters["all"] if self.parameters else None

    @property
    def peak_memory(self):
        """MiB that a device held at most during a step."""
        found = self._speed("peak_memory")
        return max(found) / 2**20 if found else None

    @property
    def step_seconds(self):
        """The median of the rows' means: a row that was disturbed does not count."""
        found = self._speed("seconds_per_step")
        return statistics.median(found) if found else None

    def _speed(self, name):
        return [number for row in self.rows if (number := row.get("speed", {}).get(name)) is not None]


def class_name(value):
    """'@warm/Cosine()', '@Cosine()' and 'Cosine' are 'Cosine'; what is no reference stays."""
    match = re.fullmatch(r"@?(?:[\w.]+/)*(?:\w+\.)*(\w+)(?:\(\))?", value)
    return match[1] if match else value


def is_adaptation(name):
    """Whether this setting says how an objective is adapted: NextToken.adapt, or objective.adapt of a notebook."""
    return name.split(".")[-1] == "adapt"


def read(path):
    """The Run in a directory, a path or a URL; None where there is none.

    Raises:
        UserError: files of those names that launch.train did not write.
    """
    path = filesystem.as_path(path)
    with filesystem.explained(path):
        config = config_of(path)
        if config is None:
            return None
        lines, environment = _text(path / "metrics.jsonl") or "", _text(path / "environment.json")
    rows = [row for row in map(_row, lines.splitlines()) if "step" in row]
    for row in rows:
        speed = row.get("speed", {})
        numbers = {**row, "speed": None} | (speed if isinstance(speed, dict) else {"speed": speed})
        if wrong := next((n for n, v in numbers.items() if not isinstance(v, int | float | None)), None):
            raise UserError(f"{path / 'metrics.jsonl'}: {wrong} = {numbers[wrong]!r} is no number: {WHAT_A_RUN_IS}")
        if not isinstance(row["step"], int):
            raise UserError(f"{path / 'metrics.jsonl'}: step = {row['step']} is no number of steps: {WHAT_A_RUN_IS}")
    parameters = _row(environment or "").get("parameters")
    whole = isinstance(parameters, dict) and {"all", "trained"} <= parameters.keys()
    run = Run(path, _settings(config, path), rows, parameters if whole else {})
    if not str(total := run.setting("total_steps", 0)).isdecimal():
        raise UserError(f"{path / 'config.gin'}: total_steps = {total} is no number of steps: {WHAT_A_RUN_IS}")
    return run


def find(patterns):
    """([Run], lines on what was left out) of paths, URLs and globs, in their order, each once.

    Raises:
        UserError: a path that is no run, or a glob that finds none.
    """
    runs, left_out = {}, []
    for pattern in map(str, patterns):
        if _has_wildcard(pattern):
            paths = _glob(pattern)
            found = {str(path): run for path in paths if (run := read(path)) is not None}
            if not found:
                matched = f"none of the {len(paths)} that match is one" if paths else "nothing matches"
                raise UserError(f"{pattern}: no run: {matched}; {WHAT_A_RUN_IS}")
            if others := [path.name for path in paths if str(path) not in found and path.is_dir()]:
                left_out.append(f"left out of {pattern}, no runs: {', '.join(others)}")
        else:
            path = filesystem.as_path(pattern)
            found = {str(path): read(path)}
            if found[str(path)] is None:
                raise UserError(f"{pattern}: {_why_no_run(path)}; {WHAT_A_RUN_IS}")
        for run in found.values():
            runs.setdefault(str(filesystem.of(run.path).absolute(run.path)), run)
    return list(runs.values()), left_out


def nearest(name, options):
    """', did you mean ...?' with the option spelled most like `name`, also by its last part; else '; there are ...'."""
    options = sorted(options)
    tails = {}
    for option in options:
        tails.setdefault(re.split(r"[./]", option)[-1], option)
    near = difflib.get_close_matches(name, [*options, *tails], 1, 0.5)
    if near:
        return f", did you mean '{tails.get(near[0], near[0])}'?"
    shown = ", ".join(options[:30]) + (f" and {len(options) - 30} more" if len(options) > 30 else "")
    return f"; there are: {shown}" if options else "; there is none"


def _settings(config, path):
    """bindings(config) of a run in `path`, each %macro replaced by what it is set to, without the macros themselves."""
    found, macros = bindings(config), set()

    def put_in(match):
        if match[1] not in found:
            return match[0]
        macros.add(match[1])
        return resolved(found[match[1]])

    def resolved(value):
        return re.sub(r"%([\w./]+)", put_in, value)

    try:
        values = {name: resolved(value) for name, value in found.items()}
    except RecursionError:
        raise UserError(f"{path / 'config.gin'}: a macro is set to itself, or to what refers to it") from None
    return {name: value for name, value in values.items() if name not in macros}


def _text(path):
    try:
        return retry(path.read_bytes).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _row(line):
    """A line of JSON as a dict; {} where it was cut off."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _number(value):
    return math.nan if value is None else float(value)


def _has_wildcard(pattern):
    """Whether this is a glob; a directory on a disk may have a [ in its name."""
    if not re.search(r"[*?\[]", pattern):
        return False
    return filesystem.remote(pattern) or not filesystem.as_path(pattern).exists()


def _glob(pattern):
    """Every path that matches, in order."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if re.search(r"[*?\[]", part))
    base = filesystem.as_path("/".join(parts[:first]) or ("/" if pattern.startswith("/") else "."))
    with filesystem.explained(base):
        return sorted(retry(lambda: list(base.glob("/".join(parts[first:]).rstrip("/")))), key=_natural)


def _natural(path):
    """seed=2 before seed=10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(path))]


def _why_no_run(path):
    with filesystem.explained(path):
        if not path.is_dir():
            return "no such directory"
        below = [inside for inside in sorted(path.iterdir()) if (inside / "config.gin").exists()]
    return "no run, it has no config.gin" + (f": give {path}/* for the {len(below)} runs in it" if below else "")
