"""docs/pods.md: which run fits which pod, as the compiler says. Rows are kept in docs/pods.json and made one by one.

A row holds the run's settings, so that a row that is older than its run file can be told. What a person writes under
the page's last heading, Notes, stays.
"""

import json
import math
import pathlib
import subprocess
import sys

from launch.aot import hlo
from launch.aot.dry_run import readable
from launch.aot.topology import FLAT, parse_topology
from launch.run.mesh import parse_mesh

ROOT = pathlib.Path(__file__).parents[2]
DATA, PAGE = ROOT / "docs" / "pods.json", ROOT / "docs" / "pods.md"
NOTES = "\n## Notes\n"
HEAD = """# Runs on pods that nobody had

Each row is a run file's train step, compiled for a TPU pod on a machine without one: for the slice of v5e that has as
many chips as the run file's mesh, and some for others too. Bytes are the compiler's own, per chip: arguments
(parameters, optimizer, extra state, batch) and temporaries (activations, gradients, all that lives within a step). A
step that does not fit is an error of the compiler's, so `fits` is not a guess. Rows are those of the batch, a chip.

The times are a roofline's, from the compiled program, with every loop counted as often as it turns. At best: the
slowest of compute, memory and interconnect, as if all overlapped. Without overlap: their sum. The estimate lies
between: of each operation the slower of compute and memory, and then the collectives that the program waits for. None
of these steps has run on these chips. MFU above 100 % is of long rows: model FLOPs count all pairs of tokens, and a
causal kernel skips half of them.

    python -m launch.compile --table                                    # every row; half a minute each and more
    python -m launch.compile --table --missing                          # those that are not there, or not of today
    python -m launch.compile --table --gin_file=runs/gpt_1b_c4.gin      # the rows of one run
    python -m launch.compile --table --gin_file=runs/gpt_1b_c4.gin --topology=v5e:16x16             # one more row of it
    python -m launch.compile --gin_file=runs/gpt_1b_c4.gin --topology=v5e:16x16 --mesh=data:2,fsdp:-1   # one, in detail
"""
COLUMNS = (
    "run", "topology", "mesh", "rows", "fits", "a chip has", "arguments", "temporaries", "model FLOPs", "step at best",
    "without overlap", "estimate", "bound by", "MFU at most", "MFU by estimate", "sent a chip and step",
)  # fmt: skip


def write(runs=(), missing=False, topology=None):
    """Compiles the rows of these run files (default: of all that name a pod) and writes both files; 1 if one does not
    fit. missing: only rows that are not there, of other settings than the run file's today, or of another reader.
    topology: of one row a run (default: the run file's own pod, and those that it has rows of). Each compile has a
    process of its own, so that memory and a crash stay in it."""
    rows = load()
    names = list(runs) or pod_runs()
    for gone in {row["run"] for row in rows.values()} - set(pod_runs()):
        rows = {key: row for key, row in rows.items() if row["run"] != gone}
    for run in names:
        for pod in [topology] if topology else topologies(run, rows):
            if missing and (row := rows.get(f"{run} {pod}")) and is_of_today(row) and not _read_before(row):
                continue
            rows[f"{run} {pod}"] = row = _compile(run, pod)
            print(f"{run} {pod}: {_verdict(row)}", flush=True)
            _save(rows)
    return 0 if all(row.get("fits") for row in rows.values()) else 1


def load():
    """{'run topology': row} as recorded."""
    return json.loads(DATA.read_text()) if DATA.exists() else {}


def pod_runs():
    """The shipped run files whose mesh names a fixed number of devices, more than one."""
    from launch.run import registry

    names = sorted(path.relative_to(registry.SHIPPED).as_posix() for path in registry.SHIPPED.glob("runs/*.gin"))
    meshes = {name: parse_mesh(registry.parse([name]).mesh) for name in names}
    return [name for name, mesh in meshes.items() if -1 not in mesh.values() and set(mesh.values()) != {1}]


def topologies(run, rows):
    """Those that a run has rows of, and where it has none the slice of v5e with as many chips as its mesh."""
    from launch.run import registry

    known = [row["topology"] for row in rows.values() if row["run"] == run]
    chips = math.prod(parse_mesh(registry.parse([run]).mesh).values())
    own = next((f"v5e:{shape}" for shape in FLAT if parse_topology(f"v5e:{shape}").chips == chips), f"v5e:1x{chips}")
    return known or [own]


def settings(run):
    """({'objective.model.heads': '6', ...}, names at their default) of all settings of a run that change its step."""
    from launch.run import registry
    from launch.run.experiment import at_default, flatten

    experiment = registry.parse([run])
    names = "objective optimizer batch_size microbatches clip ema mesh attention param_dtype moment_dtype".split()
    flat = {name: flatten(getattr(experiment, name), name) for name in names}
    unset = at_default(experiment)
    return {key: x for part in flat.values() for key, x in part.items()}, unset


def is_of_today(row):
    """Whether the run file still says what the row was compiled from. A setting that the code did not have then has
    changed nothing where it is at its default."""
    now, unset = settings(row["run"])
    then = row["settings"]
    added = now.keys() - then.keys()
    return all(now.get(key) == x for key, x in then.items()) and all(_within(key, unset) for key in added)


def _within(key, names):
    return any(key == name or key.startswith((name + ".", name + "[")) for name in names)


def _compile(run, topology):
    command = [sys.executable, "-m", "launch.compile", f"--gin_file={run}", f"--topology={topology}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode not in (0, 1) or not lines or not lines[-1].startswith("{"):
        found = {"fits": False, "error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    else:
        found = json.loads(lines[-1])
    return {**found, "run": run, "topology": topology, "settings": settings(run)[0], "reader": hlo.READER}


def _verdict(row):
    return row["error"] if "error" in row else f"{readable(row['bytes_per_chip'])}, fits: {row['fits']}"


def _save(rows):
    PAGE.parent.mkdir(exist_ok=True)
    rows = dict(sorted(rows.items()))
    DATA.write_text(json.dumps(rows, indent=1) + "\n")
    PAGE.write_text(page(rows, PAGE.read_text() if PAGE.exists() else ""))


def page(rows, before=""):
    """The rows as Markdown, and the notes of the page as it was."""
    lines = [HEAD, "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows.values()]
    if any(map(_read_before, rows.values())):
        lines += ["", "\\* Its times were read before launch/aot/hlo.py was last mended; `--missing` reads them anew."]
    return "\n".join(lines) + "\n" + "".join(before.partition(NOTES)[1:])


def _read_before(row):
    return row.get("reader") != hlo.READER


def _cells(row):
    name = row["run"].removeprefix("runs/").removesuffix(".gin") + " \\*" * _read_before(row)
    if "error" in row:
        return [name, row["topology"], "", "", "no", *[""] * (len(COLUMNS) - 6), row["error"]]
    chips = parse_topology(row["topology"]).chips
    rows = f"{int(row['settings']['batch_size']) / chips:.4g}"
    sizes = [readable(row[key] or 0) for key in ("hbm_per_chip", "arguments", "temporaries")]
    fits = "yes" if row["fits"] else "**no**"
    cells = [name, row["topology"], row["mesh"], rows, fits, *sizes, f"{row['flops']:.3g}"]
    line = row.get("roofline")
    if not line:
        return cells + [""] * (len(COLUMNS) - len(cells))
    sent = "; ".join(f"{kind} {readable(c['bytes'])}" for kind, c in row["collectives"].items())
    keys = ("step_seconds", "without_overlap", "estimate")
    times = [f"{1000 * line[key]:.4g} ms" if key in line else "" for key in keys]
    shares = [line["mfu"] * line["step_seconds"] / line[key] if key in line else None for key in keys[::2]]
    return [*cells, *times, line["bound"], *("" if x is None else f"{100 * x:.0f} %" for x in shares), sent]
