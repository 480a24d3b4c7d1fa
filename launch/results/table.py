"""Runs side by side: one row for those that differ in their seed alone, with mean and sample standard deviation."""

import csv
import dataclasses
import io
import math
import re
import statistics
from collections.abc import Callable

from launch.results.runs import SEED, Run, is_adaptation, nearest
from launch.run.measures import unit_of
from paradigm.errors import UserError

COLUMNS = 6  # so many settings have a column in a table that a person reads; the others are listed below it
LISTED = 20  # so many
OWN = {"objective": lambda run: run.objective, "adaptation": lambda run: run.adaptation}  # what --by takes beside them


@dataclasses.dataclass(frozen=True)
class Score:
    """A number of a run. of(run) is None where the run has none. better: 'lower', 'higher' or '' where nobody says."""

    name: str
    metric: str
    of: Callable
    unit: str = ""
    better: str = ""


COSTS = (
    Score("trained", "", lambda run: run.trained_percent, "%", ""),
    Score("memory", "", lambda run: run.peak_memory, "MiB", "lower"),
    Score("step time", "", lambda run: run.step_seconds, "s", "lower"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone, all of them ended; or one run that has not. name: theirs. label: what tells
    them from the other rows."""

    runs: tuple[Run, ...]
    name: str
    label: str = ""

    @property
    def ended(self):
        return self.runs[0].ended

    def number(self, score):
        """(mean, sample standard deviation) over the seeds. The mean is None where a run has no such number and nan
        where one is not finite; the deviation is None of fewer than two runs."""
        values = [score.of(run) for run in self.runs]
        if None in values:
            return None, None
        if not all(map(math.isfinite, values)):
            return math.nan, None
        exact = len(values) < 2 or (score in COSTS and len(set(values)) == 1)  # as many parameters with every seed
        return statistics.fmean(values), None if exact else statistics.stdev(values)

    def value(self, name):
        """A setting, or one of OWN."""
        return OWN[name](self.runs[0]) if name in OWN else self.runs[0].settings.get(name, "(not set)")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Rows in order; scores; names by which they are grouped; settings that have a column; others, which differ too;
    notes, lines for a person."""

    rows: tuple[Row, ...]
    scores: tuple[Score, ...]
    by: tuple[str, ...]
    settings: tuple[str, ...]
    others: tuple[str, ...]
    notes: tuple[str, ...]


def compare(runs, metrics=(), by=()):
    """The Comparison of Runs.

    Args:
        runs: of launch.results.runs.find.
        metrics: which scores, as in metrics.jsonl; 'valid/' may be left out. () for each run's best_metric at its best,
            and all that the last evaluations have in common.
        by: settings, 'objective' or 'adaptation': rows are put in the order of their values.

    Raises:
        UserError: a metric or a setting that no run has, or runs that have no metric in common.
    """
    by = tuple(_setting(name, runs) for name in by)
    groups, notes = {}, []
    for run in runs:
        key = [tuple(sorted((k, v) for k, v in run.settings.items() if k not in SEED))]
        if not run.ended:
            key.append(str(run.path))
        else:
            twin = next((other for other in groups.get((*key, 0), ()) if other.seed == run.seed), None)
            if twin is not None:
                notes.append(f"{run.path} has the settings and the seed of {twin.path}: it has a row of its own")
            key.append(0 if twin is None else str(run.path))
        groups.setdefault(tuple(key), []).append(run)
    names = dict(zip(map(id, runs), _names(runs)))
    rows = [Row(tuple(group), _common([names[id(run)] for run in group])) for group in groups.values()]
    rows.sort(key=lambda row: [_order(row.value(name)) for name in by])
    scores, more = _chosen(metrics, runs) if metrics else _default(runs, rows)
    settings, others = _differing(rows, by)
    labels = _labels(rows, [*by, *(name for name in settings if name not in by)])
    rows = tuple(dataclasses.replace(row, label=label) for row, label in zip(rows, labels))
    return Comparison(rows, tuple(scores), by, tuple(settings), tuple(others), (*notes, *more))


def console(comparison):
    """The table in columns, and what stands below it."""
    header, cells = _cells(comparison)
    rows = [header, *cells]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *_below(comparison)])


def markdown(comparison):
    """The same as a table in markdown."""
    header, cells = _cells(comparison)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, ["---"] * len(header), *cells)]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    below = _below(comparison)
    return "\n".join([*lines, *([""] if below else []), *(f"- {line}" for line in below)]) + "\n"


def as_csv(comparison):
    """All of it for a program: numbers as they are, mean and deviation in columns of their own, every setting."""
    c, written = comparison, io.StringIO()
    settings = [name for name in (*c.by, *c.settings, *c.others) if name not in OWN]
    settings = list(dict.fromkeys(settings))
    scores = (*COSTS, *c.scores)
    titles = [title for s in scores for title in (_title(s), f"{_title(s)} sd")]
    out = csv.writer(written, lineterminator="\n")
    out.writerow(["run", "paths", "objective", "adaptation", "n", "step", "total_steps", "ended", *settings, *titles])
    for row in c.rows:
        first = row.runs[0]
        numbers = ["" if x is None else repr(x) for s in scores for x in row.number(s)]
        paths = " ".join(str(run.path) for run in row.runs)
        facts = [row.name, paths, first.objective, first.adaptation, len(row.runs), first.step, first.total_steps]
        out.writerow([*facts, row.ended, *map(row.value, settings), *numbers])
    return written.getvalue()


def short(value, length=28):
    """A setting for a person: no quotes, no @(), and the end of what is long."""
    if re.fullmatch(r"@[\w./]+\(\)", value):
        value = value[1:-2]
    elif re.fullmatch(r"'[^']*'|\"[^\"]*\"", value):
        value = value[1:-1]
    return value if len(value) <= length else f"..{value[2 - length :]}"


def shown(mean, deviation):
    """'0.834 ± 0.012'; '' of None."""
    if mean is None:
        return ""
    return f"{mean:.4g}" + (f" ± {deviation:.2g}" if deviation is not None else "")


# --- which scores ----------------------------------------------------------------------------------------------------


def _last(metric, name=None):
    unit, better = unit_of(metric)
    return Score(name or metric, metric, lambda run: run.last(metric), unit, better)


def _best(metric, mode):
    last = _last(metric, f"{metric} (best)")
    better = {"min": "lower", "max": "higher"}[mode]
    return dataclasses.replace(last, of=lambda run: run.best(metric, mode), better=better)


def _chosen(metrics, runs):
    """The scores that a person asked for, and notes on runs that lack one."""
    known = dict.fromkeys(name for run in runs for name in run.metrics)
    scores, notes = [], []
    for metric in metrics:
        name = metric if metric in known else f"valid/{metric}"
        if name not in known:
            raise UserError(f"--metric={metric}: no run has it{nearest(metric, known)}")
        lacking = [str(run.path) for run in runs if name not in run.metrics]
        notes += [f"{name} is not in {', '.join(lacking)}"] if lacking else []
        scores.append(_last(name))
    return scores, notes


def _default(runs, rows):
    """(scores, notes): the best of each best_metric, and what the last evaluations have in common."""
    evaluated = [run for run in runs if any(name.startswith("valid/") for name in run.metrics)]
    if not evaluated:
        return [], ["no run has been evaluated yet"]
    names = lambda run: [name for name in run.metrics if name.startswith("valid/")]
    common = [name for name in names(evaluated[0]) if all(name in run.metrics for run in evaluated)]
    if not common:
        which = "; ".join(f"{run.path} has {', '.join(names(run))}" for run in evaluated)
        raise UserError(f"the runs have no metric in common, choose with --metric: {which}")
    partly = {name: None for run in evaluated for name in names(run) if name not in common}
    best = [by for by in dict.fromkeys(run.best_by for run in evaluated) if by[0] in common]
    scores = [_best(*by) for by in best]
    scores += [_last(name) for name in common if not name.startswith("valid/loss/")]
    return scores, [f"not in every run, --metric shows them: {', '.join(partly)}"] if partly else []


# --- which settings --------------------------------------------------------------------------------------------------


def _setting(name, runs):
    """The full name of what --by names. Raises UserError where no run has it, or several settings are meant."""
    known = dict.fromkeys(setting for run in runs for setting in run.settings)
    if name in OWN or name in known:
        return name
    meant = [setting for setting in known if setting.endswith(f".{name}")]
    if len(meant) > 1:
        raise UserError(f"--by={name} may be {' or '.join(meant)}: write which")
    if not meant:
        raise UserError(f"--by={name}: no run has such a setting{nearest(name, [*OWN, *known])}")
    return meant[0]


def _differing(rows, by):
    """(settings for columns, those for the list below). A column is for what every row has and no other column says."""
    names = dict.fromkeys(name for row in rows for name in row.runs[0].settings if name not in SEED)
    said = lambda name: name in ("Experiment.objective", "objective") or is_adaptation(name)
    differ = [name for name in names if len({row.value(name) for row in rows}) > 1 and not said(name)]
    whole = [name for name in differ if all(name in row.runs[0].settings for row in rows)]
    columns = [name for name in by if name not in OWN]
    columns += [name for name in whole if name not in columns][: max(COLUMNS - len(columns), 0)]
    return columns, [name for name in differ if name not in columns]


def _labels(rows, names):
    """What tells each row from the others: its differing values, else its name."""
    differ = lambda name: len({row.value(name) for row in rows}) > 1
    told = [name for name in OWN if differ(name)] + [name for name in names if name not in OWN and differ(name)]
    labels = []
    for row in rows:
        parts = [
            row.value(n) or "no adaptation" if n in OWN else f"{n.split('.')[-1]}={short(row.value(n))}"
            for n in told[:4]
        ]
        labels.append(" · ".join(parts))
    if not told:
        labels = [row.name for row in rows]
    labels = [f"{label}{'' if row.ended else f' at step {row.runs[0].step}'}" for label, row in zip(labels, rows)]
    return [row.name if labels.count(label) > 1 else label for label, row in zip(labels, rows)]


def _order(value):
    """Numbers by size, before texts."""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value


# --- names and cells -------------------------------------------------------------------------------------------------


def _names(runs):
    """Where each lies, without what all have in common."""
    parts = [str(run.path).split("/") for run in runs]
    shared = 0
    while all(len(p) > shared + 1 for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return ["/".join(p[shared:]) for p in parts]


def _common(names):
    """'a/seed=*' of 'a/seed=0' and 'a/seed=1'; the first and the last where all share nothing."""
    if len(names) == 1:
        return names[0]
    least = min(map(len, names))
    same = lambda part: len({part(name) for name in names}) == 1
    start = next((n for n in range(least, 0, -1) if same(lambda name: name[:n])), 0)
    end = next((n for n in range(least - start, 0, -1) if same(lambda name: name[len(name) - n :])), 0)
    return f"{names[0][:start]}*{names[0][len(names[0]) - end :]}" if start + end else f"{names[0]} .. {names[-1]}"


def _title(score):
    return f"{score.name} [{score.unit}]" if score in COSTS else score.name


def _cells(comparison):
    """(titles, rows of texts); a column that is empty in every row is left out."""
    c = comparison
    rest = [name for name in (*OWN, *c.settings) if name not in c.by]
    columns = {"run": [row.name for row in c.rows]}
    columns |= {name: [short(row.value(name)) for row in c.rows] for name in (*c.by, *rest)}
    state = lambda run: "" if run.ended else f"not ended: step {run.step} of {run.total_steps}"
    columns["state"] = [state(row.runs[0]) for row in c.rows]
    columns["n"] = [str(len(row.runs)) for row in c.rows]
    for score in (*COSTS, *c.scores):
        columns[_title(score)] = [shown(*row.number(score)) for row in c.rows]
    columns = {title: cells for title, cells in columns.items() if any(cells) or title in c.by}
    return list(columns), [list(row) for row in zip(*columns.values())]


def _below(comparison):
    """Lines on settings without a column, and notes."""
    c, lines = comparison, []
    alone = [name for name in c.others if sum(name in row.runs[0].settings for row in c.rows) == 1]
    others = [name for name in c.others if name not in alone]
    for name in others[:LISTED]:
        lines.append(f"{name}: " + " | ".join(short(row.value(name)) for row in c.rows))
    if len(others) > LISTED:
        lines.append(f"{len(others) - LISTED} more settings differ: compare.csv has them (--out)")
    if alone:
        lines.append(f"{len(alone)} settings that one row alone has are not listed: compare.csv has them (--out)")
    if any(len(row.runs) > 1 for row in c.rows):
        lines.append("n runs that differ in their seed alone: mean ± sample standard deviation")
    return [*lines, *c.notes]
