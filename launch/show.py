"""Say what a run's checkpoints hold, and hash them, so that two runs can be compared from outside.

    python -m launch.show --workdir=/tmp/demo
    python -m launch.show --workdir=/tmp/demo --step=best | tail -1 | python -m json.tool
    python -m launch.show --diff /tmp/demo /tmp/other     # the settings in which the two runs differ

The last line is one JSON object: step, next_index, parameter_count, objective, phase, and the sha256 of each tree
(params, opt_state, extra). A hash covers each leaf's path, dtype, shape and bytes, in the order of paths: runs whose
hashes agree are bit for bit in the same state. Every file is verified first, and nothing is written.
"""

import json

from absl import flags

from launch.run import cli
from paradigm.errors import UserError

TREES = ("params", "opt_state", "extra")


def main(argv):
    if DIFF.value:
        runs = [DIFF.value, *filter(None, [WORKDIR.value]), *argv[1:]]
        if len(runs) != 2:
            raise UserError("--diff takes two runs, as in --diff /tmp/one /tmp/other")
        print("\n".join(diff(*runs)))
        return
    if argv[1:]:
        raise UserError(f"'{argv[1]}' is not a flag: did you mean --workdir={argv[1]}? See --help")
    if not WORKDIR.value:
        raise UserError("--workdir is required, as in --workdir=/tmp/demo")

    import jax

    jax.config.update("jax_platforms", "cpu")  # the accelerator may be busy with the run that is looked at
    summary, facts = show(WORKDIR.value, STEP.value)
    print(summary)
    print(json.dumps(facts))


def diff(one, other):
    """The lines by which the configurations of two run directories differ, a setting each.

    Raises UserError where one has no config.gin.
    """
    from launch.storage import filesystem
    from launch.storage.workdir import compare, config_of

    texts = []
    for workdir in (one, other):
        path = filesystem.as_path(workdir)
        with filesystem.explained(path):
            texts.append(config_of(path))
        if texts[-1] is None:
            raise UserError(f"{workdir}: no run directory, it has no config.gin")
    return compare(*texts) or ["no setting differs"]


def show(workdir, step=None):
    """(text for people, the JSON object as a dict) of a checkpoint of a run directory.

    Args:
        workdir: the run directory, a path or a URL.
        step: int or its digits, "best", or None for the newest that is whole.

    Raises:
        UserError: no such directory, no checkpoint, or none that can be read.
    """
    from launch.storage import filesystem
    from launch.storage.checkpoint import tree_sha256
    from launch.storage.workdir import open_run
    from paradigm import trees

    checkpoints, step = open_run(workdir, step)
    step, state, meta = checkpoints.arrays(step)
    leaves = {name: [x for _, x in trees.named_leaves(state.get(name, {}))] for name in TREES}
    facts = {
        "step": step,
        "next_index": meta["next_index"],
        "parameter_count": sum(x.size for x in leaves["params"]),
        "objective": meta["objective"],
        "phase": meta.get("phase"),
        "sha256": {name: tree_sha256(state.get(name, {})) for name in TREES},
    }
    lines = [
        f"{filesystem.as_path(workdir)}: step {step}, {facts['objective']}, next example {facts['next_index']:,}",
        "",
    ]
    best = checkpoints.best_step()
    for saved in checkpoints.steps():
        marks = ["shown"] * (saved == step) + ["best"] * (saved == best)
        numbers = [f"{name} {value:.6g}" for name, value in sorted(checkpoints.meta(saved)[1].items())]
        lines.append("  ".join([f"checkpoint {saved}", *numbers, *(f"({mark})" for mark in marks)]))
    lines.append("")
    for name in TREES:
        count, size = sum(x.size for x in leaves[name]), sum(x.nbytes for x in leaves[name])
        lines.append(f"{name:<9}  {len(leaves[name]):>4} leaves  {count:>15,} numbers  {size:>15,} bytes")
    versions = meta.get("versions", {})
    lines += ["", "written by " + ", ".join(f"{k} {v}" for k, v in versions.items())] if versions else []
    return "\n".join(lines), facts


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "The run directory.")
    DIFF = flags.DEFINE_string(
        "diff", None, "A run directory to compare the configuration of another with: --diff A B."
    )
    STEP = flags.DEFINE_string("step", None, "A step, or 'best'. The newest checkpoint that is whole unless given.")
    cli.run(main)
