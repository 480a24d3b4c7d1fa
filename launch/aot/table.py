"""docs/pods.md: which run fits which pod, as the compiler says. Rows are kept in docs/pods.json and made one by one.

A row holds the run's settings, so that a row that is older than its run file can be told.
"""

import json
import pathlib
import subprocess
import sys

from launch.aot.dry_run import readable
from launch.run.mesh import parse_mesh

TOPOLOGIES = ("v5e:16x16", "v5p:4x4x4", "v6e:16x16")
ROOT = pathlib.Path(__file__).parents[2]
DATA, PAGE = ROOT / "docs" / "pods.json", ROOT / "docs" / "pods.md"
HEAD = """# Runs on pods that nobody had

Each row is a run file's train step, compiled for a TPU pod on a machine without one. Bytes are the compiler's own, per
chip: arguments (parameters, optimizer, extra state, batch) and temporaries (activations, gradients, all that lives
within a step). A step that does not fit is an error of the compiler's, so `fits` is not a guess. The times are one: a
roofline from the compiled program, with every loop counted as often as it turns: the slowest of compute, memory and
interconnect, as if all overlapped, and their sum, as if nothing did. None of these steps has run on these chips.
MFU above 100 % is of long rows: model FLOPs count all pairs of tokens, and a causal kernel skips half of them.

    python -m launch.compile --table                                    # every row; half a minute each and more
    python -m launch.compile --table --missing                          # those that are not there, or not of today
    python -m launch.compile --table --gin_file=runs/gpt_1b_c4.gin      # the rows of one run
    python -m launch.compile --gin_file=runs/gpt_1b_c4.gin --topology=v5e:16x16 --mesh=data:2,fsdp:-1   # one, in detail
"""
COLUMNS = (
    "run", "topology", "mesh", "fits", "a chip has", "arguments", "temporaries", "model FLOPs", "step at best",
    "without overlap", "bound by", "MFU at most", "sent a chip and step",
)  # fmt: skip


def write(runs=(), missing=False):
    """Compiles the rows of these run files (default: of all that name a pod) and writes both files; 1 if one does not
    fit. missing: only rows that are not there, or of other settings than the run file's today. Each compile has a
    process of its own, so that memory and a crash stay in it."""
    rows = load()
    names = list(runs) or pod_runs()
    for gone in {row["run"] for row in rows.values()} - set(pod_runs()):
        rows = {key: row for key, row in rows.items() if row["run"] != gone}
    for run in names:
        for topology in TOPOLOGIES:
            if missing and (row := rows.get(f"{run} {topology}")) and is_of_today(row):
                continue
            rows[f"{run} {topology}"] = row = _compile(run, topology)
            print(f"{run} {topology}: {_verdict(row)}", flush=True)
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
    return {**found, "run": run, "topology": topology, "settings": settings(run)[0]}


def _verdict(row):
    return row["error"] if "error" in row else f"{readable(row['bytes_per_chip'])}, fits: {row['fits']}"


def _save(rows):
    PAGE.parent.mkdir(exist_ok=True)
    rows = dict(sorted(rows.items()))
    DATA.write_text(json.dumps(rows, indent=1) + "\n")
    PAGE.write_text(page(rows))


def page(rows):
    """The rows as Markdown."""
    lines = [HEAD, "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows.values()]
    return "\n".join(lines) + "\n"


def _cells(row):
    name = row["run"].removeprefix("runs/").removesuffix(".gin")
    if "error" in row:
        return [name, row["topology"], "", "no", *[""] * (len(COLUMNS) - 5), row["error"]]
    sizes = [readable(row[key] or 0) for key in ("hbm_per_chip", "arguments", "temporaries")]
    cells = [name, row["topology"], row["mesh"], "yes" if row["fits"] else "**no**", *sizes, f"{row['flops']:.3g}"]
    line = row.get("roofline")
    if not line:
        return cells + [""] * (len(COLUMNS) - len(cells))
    sent = "; ".join(f"{kind} {readable(c['bytes'])}" for kind, c in row["collectives"].items())
    times = [f"{1000 * line[key]:.4g} ms" for key in ("step_seconds", "without_overlap")]
    return [*cells, *times, line["bound"], f"{100 * line['mfu']:.0f} %", sent]
