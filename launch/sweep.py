"""Run a grid: launch.train for every combination of settings, each in a run directory of its own.

    python -m launch.sweep --gin_file=runs/smoke/next_token.gin --workdir=/tmp/rates \\
        --grid='Experiment.seed=0,1,2' --grid='Cosine.peak=0.01,0.02'

A --grid is a binding with several values: commas part them, but for those within brackets or quotes, which belong to
a value: --grid="Experiment.freeze=(),(('^model/embed', True),)". --grid='gin_file=runs/a.gin,runs/b.gin' takes run
files. --workdir is the directory of all points, each named by what it has of its own; --dry_run prints the commands and
runs none; all other flags are handed on to launch.train. All points are checked before the first one runs.

The same command goes on: what has ended is skipped, what was interrupted goes on. A point that fails is told at the
end, with its last line and exit code 1; the others still run. Of several machines each takes its share: --index=I
--of=N, or the index of a SLURM array (SLURM_ARRAY_TASK_ID) or of a Kubernetes job (JOB_COMPLETION_INDEX, with --of).
The last thing is launch.compare's table.
"""

import ast
import dataclasses
import hashlib
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys

from absl import flags

from launch import train
from launch.run import cli
from paradigm.errors import UserError

FILES = "gin_file"  # an axis of run files
ALONE = {"distributed", "coordinator", "processes", "process"}  # flags of runs of several processes
NAMED = 40  # characters of a value in a directory's name


@dataclasses.dataclass(frozen=True)
class Point:
    """One combination. name: of its directory. files, bindings: what it adds to the flags."""

    name: str
    files: tuple[str, ...]
    bindings: tuple[str, ...]


def main(argv):
    if argv[1:]:
        raise UserError(f"'{argv[1]}' is not a flag: did you mean --gin_file={argv[1]}? See --help")
    points = grid(GRID.value)
    if not (train.GIN_FILE.value or points[0].files):
        raise UserError("--gin_file is required, as in --gin_file=runs/demo.gin")
    if not train.WORKDIR.value:
        raise UserError("--workdir is required: the directory in which each point has its run directory")
    share, told = part(len(points), INDEX.value, OF.value)
    common = _flags_of_train()

    import jax

    jax.config.update("jax_platforms", "cpu")  # the accelerator is for the runs
    from launch.storage import filesystem

    workdir = filesystem.as_path(train.WORKDIR.value)
    states = [check(point, workdir) for point in points]
    mine = [(points[i], states[i]) for i in share]
    ended = sum(state == "ended" for _, state in mine)
    print(f"{len(points)} points{told}, {len(mine)} to look after, {ended} of them ended already", flush=True)
    if train.DRY_RUN.value:
        for point, state in mine:
            print(("# has ended: " if state == "ended" else "") + shlex.join(["python", *command(point, common)]))
        return
    failed, stop = {}, Stop()
    with stop:
        for number, (point, state) in enumerate(mine, 1):
            if state == "ended" or stop.asked:
                continue
            print(f"--- {number} of {len(mine)} · {point.name}", flush=True)
            code, last = stop.run([sys.executable, *command(point, common)])
            if stop.asked:
                print(f"interrupted in {point.name}; the same command goes on from there", flush=True)
            elif check(point, workdir) != "ended":
                failed[point.name] = f"exit code {code}: {last}"
    _conclude(points, workdir)
    if failed:
        lines = [f"{len(failed)} of {len(mine)} points failed", *(f"  {name}: {why}" for name, why in failed.items())]
        print("\n".join(lines), file=sys.stderr)
        sys.exit(1)
    sys.exit(train.INTERRUPTED_CODE.value if stop.asked else 0)


def grid(texts):
    """[Point] of the combinations of 'NAME=VALUE,VALUE ...', the last one changing fastest.

    Raises UserError for a text that is no such thing, a name given twice, or values that are equal.
    """
    axes = dict(map(_axis, texts))
    if len(axes) < len(texts) or not axes:
        given = [text.partition("=")[0].strip() for text in texts]
        twice = next((name for name in given if given.count(name) > 1), None)
        raise UserError(
            f"--grid: {twice} is given twice: write all its values into one"
            if twice
            else "--grid is required, as in --grid='Experiment.seed=0,1,2'"
        )
    tails = [name.split(".")[-1] for name in axes]
    names = [tail if tails.count(tail) == 1 else name.replace("/", ".") for name, tail in zip(axes, tails)]
    words = [_words(values) for values in axes.values()]
    points = []
    for chosen in itertools.product(*(range(len(values)) for values in axes.values())):
        called = ",".join(f"{name}={those[i]}" for name, those, i in zip(names, words, chosen))
        pairs = [(name, values[i]) for (name, values), i in zip(axes.items(), chosen)]
        files = tuple(value for name, value in pairs if name == FILES)
        points.append(Point(called, files, tuple(f"{name} = {value}" for name, value in pairs if name != FILES)))
    return points


def part(count, index=None, of=None, environment=os.environ):
    """(range of the points that are this machine's, a remark for people).

    index, of: the flags. Without them, SLURM's array or Kubernetes' indexed job says them, if one has started this.

    Raises UserError where one of the two is missing, or the index is not below `of`.
    """
    source = "--index"

    def said(name, default=None):
        if not (text := environment.get(name, str(default))).isdecimal():
            raise UserError(
                f"{name}={text!r} is no number: set or unset it, or give --index=I --of=N, which stand above it"
            )
        return int(text)

    if index is None and "SLURM_ARRAY_TASK_ID" in environment:
        source, first = "SLURM_ARRAY_TASK_ID", said("SLURM_ARRAY_TASK_MIN", 0)
        index = (said(source) - first) // max(said("SLURM_ARRAY_TASK_STEP", 1), 1)
        of = of or said("SLURM_ARRAY_TASK_COUNT", 0) or None
    elif index is None and "JOB_COMPLETION_INDEX" in environment:
        source = "JOB_COMPLETION_INDEX"
        index = said(source)
    if index is None and of is None:
        return range(count), ""
    if index is None or of is None:
        has, lacks = ("--of", "--index") if index is None else (source, "--of")
        raise UserError(f"{has} is given and {lacks} is not: --index=I --of=N takes every N-th point from the I-th on")
    if not 0 <= index < of:
        raise UserError(f"{source} is {index}, and --of={of} parts have the indices 0 to {of - 1}")
    return range(index, count, of), f" (part {index} of {of}, by {source})"


def check(point, workdir):
    """'ended', 'begun' or 'new', of a point in the directory of the sweep.

    Raises UserError where launch.train would: a binding that matches nothing, a value that cannot be, a source that is
    not there, or the directory of another run.
    """
    from launch.run import registry
    from launch.run.data import look
    from launch.run.experiment import validate
    from launch.storage import filesystem, sync
    from launch.storage import workdir as run_directory

    mesh = [f"Experiment.mesh = {train.MESH.value!r}"] if train.MESH.value else []
    try:
        params = [*train.GIN_PARAM.value, *point.bindings, *mesh]
        run = train.parsed([*train.GIN_FILE.value, *point.files], params, train.IMPORT.value, train.BASE.value)
        validate(run, None)
        look(run.data, sync.local(workdir / point.name) / "data")
    except UserError as error:
        raise UserError(f"{point.name}: {str(error).replace('--gin_param', '--grid or --gin_param')}") from error
    directory = workdir / point.name
    run_directory.check(directory, registry.operative_config(), registry.unset())
    with filesystem.explained(directory):
        steps = filesystem.of(directory).steps(directory / "checkpoints")
    return "new" if not steps else "ended" if steps[-1] >= run.total_steps else "begun"


def command(point, common):
    """The words behind `python` that run a point. common: the flags of all points."""
    own = [f"--gin_file={path}" for path in point.files] + [f"--gin_param={binding}" for binding in point.bindings]
    return ["-m", "launch.train", *common, *own, f"--workdir={train.WORKDIR.value.rstrip('/')}/{point.name}"]


class Stop:
    """Runs one process after the other and passes SIGTERM and Ctrl-C on to it, so that it saves; a second Ctrl-C ends
    it at once. asked: whether one of them has come."""

    def __init__(self):
        self.asked, self._child, self._before = False, None, {}

    def run(self, words):
        """(exit code, the last line that it printed). What it prints is printed here as it comes."""
        last = ""
        how = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", process_group=0)
        with subprocess.Popen(words, **how) as self._child:
            for line in self._child.stdout:
                print(line, end="", flush=True)
                last = line.strip() or last
        return self._child.returncode, last

    def __enter__(self):
        self._before = {s: signal.signal(s, self._catch) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number, _):
        if self._child is not None and self._child.poll() is None:
            self._child.kill() if self.asked and number == signal.SIGINT else self._child.terminate()
        self.asked = True


def _axis(text):
    """(name, its values as gin texts) of 'NAME=VALUE,VALUE'."""
    name, equals, values = (piece.strip() for piece in text.partition("="))
    if not equals or not re.fullmatch(r"[\w./]+", name):
        raise UserError(f"--grid={text}: write NAME=VALUE,VALUE, as in --grid='Experiment.seed=0,1,2'")
    found, depth, quote = [""], 0, ""
    for letter in values:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth and not quote:
            found.append("")
        else:
            found[-1] += letter
    if depth or quote:
        raise UserError(f"--grid={text}: a bracket or a quote is left open, or closed twice")
    found = [value.strip() for value in found]
    if "" in found:
        raise UserError(f"--grid={text}: a value is missing: commas stand between values, each of them gin's")
    same = list(map(_value, found))
    if twice := next((value for value, one in zip(found, same) if same.count(one) > 1), None):
        raise UserError(f"--grid={text}: {twice} is there twice: a point would be run twice")
    return name, found


def _value(text):
    """What a gin text says, where that is plain: 0.1 and 1e-1 are one value."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _words(values):
    """A word for each value, for a directory's name; no two alike."""
    words = []
    for value in values:
        word = re.sub(r"\.gin$", "", value) if re.fullmatch(r"[\w./-]+\.gin", value) else value
        word = re.sub(r"[^\w.+-]+", "-", re.sub(r"\(\)$", "", word)).strip("-") or "empty"
        words.append(word)
    mark = lambda value: hashlib.sha256(value.encode()).hexdigest()[:6]
    unclear = lambda word: len(word) > NAMED or words.count(word) > 1 or word in (".", "..")
    return [f"{w[:NAMED]}-{mark(v)}" if unclear(w) else w for w, v in zip(words, values)]


def _flags_of_train():
    """The flags that were given and that every point takes, as words."""
    words = []
    for flag in flags.FLAGS.get_key_flags_for_module(train.__name__):
        if not flag.present or flag.name in ("workdir", "dry_run"):
            continue
        if flag.name in ALONE or flag.name in ("list", "describe"):
            raise UserError(f"--{flag.name} is for launch.train; launch.sweep starts one process after the other")
        if flag.boolean:
            words.append(f"--{'' if flag.value else 'no'}{flag.name}")
        else:
            values = flag.value if isinstance(flag.value, list) else [flag.value]
            words += [f"--{flag.name}={value}" for value in values]
    return words


def _conclude(points, workdir):
    """Prints the table of the points that have begun."""
    from launch.compare import compared
    from launch.results.runs import read

    there = [workdir / point.name for point in points if read(workdir / point.name) is not None]
    if there:
        try:
            print(f"\n{compared(there)}", flush=True)
        except UserError as error:
            print(error, file=sys.stderr)
        told = f"{train.WORKDIR.value.rstrip('/')}/*"
        print(f"picture and more: python -m launch.compare {shlex.quote(told)} --out=DIR", flush=True)


flags.adopt_module_key_flags(train)

if __name__ == "__main__":
    GRID = flags.DEFINE_multi_string("grid", [], "NAME=VALUE,VALUE: an axis of the grid. May be repeated.")
    INDEX = flags.DEFINE_integer("index", None, "Which part of the grid is this machine's, counted from 0; with --of.")
    OF = flags.DEFINE_integer("of", None, "Into how many parts the grid is cut: part I has every N-th point from I on.")
    cli.run(main)
