"""What comparisons of objectives share: ordinary runs by the command line, kept results, cells of tables, curves."""

import itertools
import json
import statistics
import subprocess
import sys

from paradigm.errors import UserError
from paradigm.storage import expand


def there(path):
    """The absolute path of something that must exist."""
    path = expand(path).resolve()
    if not path.exists():
        raise UserError(f"{path} is not there: give the place of the data")
    return path


def command(module, *arguments, bindings=()):
    """Runs an entry point of the project, its output shown as it comes; returns its last line."""
    line = [sys.executable, "-m", module, *arguments, *(f"--gin_param={b}" for b in bindings)]
    last = ""
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        for text in process.stdout:
            print(text, end="", flush=True)
            last = text.strip() or last
    if process.returncode:
        raise UserError(f"{' '.join(line)} ended with {process.returncode}: mend that and give this command again")
    return last


def train(run, workdir, bindings):
    """Trains `runs/small/RUN.gin` to its end, or goes on with it."""
    command("launch.train", f"--gin_file=runs/small/{run}.gin", f"--workdir={workdir}", bindings=bindings)


def chosen(only, runs, flag="only"):
    """The runs that a flag asks for by name, in that order; all where it names none."""
    if unknown := set(only or ()) - set(runs):
        raise UserError(f"--{flag}={','.join(sorted(unknown))}: choose from {', '.join(runs)}")
    return tuple(only or runs)


def evaluate(workdir, name, bindings):
    """{metric: value} of the newest checkpoint under these bindings; kept in the run as NAME.json."""
    kept = workdir / f"{name}.json"
    if not kept.exists():
        found = json.loads(command("launch.evaluate", f"--workdir={workdir}", bindings=bindings))
        kept.write_text(json.dumps({key.removeprefix("valid/"): value for key, value in found.items()}))
    return json.loads(kept.read_text())


def cell(numbers, scale=100.0, digits=1):
    """The mean, and the standard deviation over seeds where there are several, in percent; nothing of nothing."""
    if not numbers:
        return ""
    mean = f"{scale * statistics.mean(numbers):.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean} ± {scale * statistics.stdev(numbers):.{digits}f}"


def table(header, rows):
    """Lines of markdown."""
    line = lambda cells: f"| {' | '.join(cells)} |"
    return [line(header), "|" + "---|" * len(header), *map(line, rows), ""]


NOTES = "\n## Notes\n"  # the last heading of a page, below which a person writes


def save(page, text):
    """Writes a page anew. What it has and the new text lacks stays: sections, rows and cells of runs that lie on
    another machine, and the notes that a person has put below."""
    old, heading, notes = page.read_text().partition(NOTES) if page.exists() else ("", "", "")
    page.write_text(joined(old, text) + heading + notes)


def joined(old, new):
    """`new`, and of `old` what it lacks: sections by heading, their tables by the names of the columns, rows by their
    first cell, cells that are empty. A table whose columns have changed is the new one alone; what is to go, a person
    takes out of the page."""
    before, sections = _sections(old), _sections(new)
    for heading in before.keys() & sections.keys():
        (there, _), (tables, rest) = _tables(before[heading]), _tables(sections[heading])
        made = {key: (text, _rows(there.get(key, ("", []))[1], rows)) for key, (text, rows) in tables.items()}
        lacks = len(tables) < len(there)  # else the columns of some have changed
        found = _both(there, made) if lacks else made
        sections[heading] = [line for text, rows in found.values() for line in (*text, *rows)] + rest
    return "\n".join(line for lines in _both(before, sections).values() for line in lines)


def _both(old, new):
    """The items of both, `new`'s where both have one; what `old` has alone stays behind what it stood behind."""
    order, last = list(new), None
    for key in old:
        if key not in new:
            order.insert(order.index(last) + 1 if last is not None else 0, key)
        last = key
    return {key: new.get(key, old.get(key)) for key in order}


def _sections(text):
    """{heading, "" of what stands before the first: its lines}."""
    sections, heading = {}, ""
    for line in text.split("\n"):
        heading = line if line.startswith("#") else heading
        sections.setdefault(heading, []).append(line)
    return sections


def _tables(lines):
    """({(the line of a table's columns, which of those alike): (the lines before it, its own)}, those behind all)."""
    tables, text = {}, []
    for is_table, block in itertools.groupby(lines, lambda line: line.startswith("|")):
        block = list(block)
        if is_table:
            alike = sum(columns == block[0] for columns, _ in tables)
            tables[block[0], alike], text = (text, block), []
        else:
            text = block
    return tables, text


def _rows(old, new):
    """Lines of a table, with the rows and cells that only `old` has."""
    cells = lambda lines: {row[0]: row for row in (line[2:-2].split(" | ") for line in lines[2:])}
    before, rows = cells(old), cells(new)
    rows = {key: [x or y for x, y in zip(row, before.get(key, row))] for key, row in rows.items()}
    return [*new[:2], *(f"| {' | '.join(row)} |" for row in _both(before, rows).values())]


def curves(groups, key, labels, path, levels=(), unit=100.0):
    """A picture of a validation metric, times `unit`, by step, a panel a group: mean over seeds, least to best shaded.

    groups: title -> {name: the directories of its seeds}. labels: of matplotlib's axis.set. levels: {name: height},
    drawn as lines across.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (1 + 6.5 * len(groups), 4.8)
    figure, axes = plt.subplots(1, len(groups), figsize=size, layout="constrained", sharey=True, squeeze=False)
    names = list(dict.fromkeys(name for runs in groups.values() for name in runs))
    for axis, (title, runs) in zip(axes[0], groups.items()):
        for name, workdirs in runs.items():
            i = names.index(name)
            style = {"marker": "osD^v"[i // 10 % 5], "ls": "-" if i < 10 else "--", "color": f"C{i}"}
            curve(axis, workdirs, key, unit, label=name, **style)
        for name, level in dict(levels).items():
            axis.axhline(level, color="grey", linestyle=":", label=name)
        axis.set(title=title, **labels)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves, not over them
    figure.savefig(path, dpi=110)
    plt.close(figure)


def curve(axis, workdirs, key, unit=1.0, *, label, color, marker="o", ls="-"):
    """A validation metric, times `unit`, by step: mean over seeds, shaded between the least and the best."""
    by_step = {}
    for workdir in workdirs:
        for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
            if f"valid/{key}" in row:
                by_step.setdefault(row["step"], []).append(unit * row[f"valid/{key}"])
    steps = sorted(by_step)
    low, middle, high = ([pick(by_step[s]) for s in steps] for pick in (min, statistics.mean, max))
    axis.plot(steps, middle, marker=marker, markersize=4, color=color, ls=ls, label=label)
    axis.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
