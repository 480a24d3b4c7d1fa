"""Pre-train from a gin file.

    python -m launch.train --gin_file=runs/demo.gin --workdir=/tmp/demo

The run directory then holds config.gin, environment.json, metrics.jsonl, TensorBoard events, samples/ and checkpoints/.
The same command goes on where an interrupted run stopped, with the same numbers as if it had never been interrupted.
Look at a run file before you pay for it with --dry_run; change a setting with --gin_param="Name.parameter = value".
In a notebook: `from launch import train; train.run("runs/demo.gin", "/tmp/demo", ["Experiment.total_steps = 100"])`.
"""

import os
import re
import sys

from absl import flags

from launch.run import cli, distributed, host, watchdog
from paradigm.errors import UserError

GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", [], "A run file: a path, or a shipped file, as in runs/demo.gin. Repeat it to add to the first."
)
GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param", [], "A binding on top of the files, as in 'Experiment.batch_size = 64'. The last one wins."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run directory, a path or gs://BUCKET/RUN. An earlier run of the same experiment is continued."
)
MESH = flags.DEFINE_string(
    "mesh", None, "How the devices are used, as in data:1,fsdp:-1,tensor:1; short for the binding Experiment.mesh."
)
INIT_FROM = flags.DEFINE_string(
    "init_from", None, "A run directory, or a checkpoint in it, whose parameters a new run starts with. Strict."
)
INIT_PARTLY_FROM = flags.DEFINE_string(
    "init_partly_from", None, "The same, but what does not match is made anew: an encoder under another head."
)
BASE = flags.DEFINE_string(
    "base", None, "A pre-trained model to adapt, as it is there: a run directory, or one of the transformers library's."
)
IMPORT = flags.DEFINE_multi_string(
    "import",
    [],
    "A module outside the repository whose classes and functions gin files may then name. May be repeated.",
)
PROFILE = flags.DEFINE_string("profile", None, "Steps to trace for TensorBoard, as in 10:13 (10, 11 and 12).")
LIST = flags.DEFINE_bool("list", False, "Print what run files there are and what they may name, and stop.")
DESCRIBE = flags.DEFINE_string(
    "describe", None, "Print the settings of what a run file may name, as in --describe=MAE, and stop."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print parameters, bytes per device and FLOPs per step, and stop.")
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache", "~/.cache/paradigm/xla", "Where compiled programs stay for the next start; '' keeps none."
)
INTERRUPTED_CODE = flags.DEFINE_integer(
    "interrupted_code", 0, "Exit code of a run that a signal ended early, saved.", 0, 255
)
flags.adopt_module_key_flags(distributed)
flags.adopt_module_key_flags(watchdog)


def run(gin_files, workdir, gin_params=(), imports=(), **how):
    """The command in this process, for a notebook: trains, or goes on with what is in `workdir`, and prints as it goes.

    Args:
        gin_files: a run file or several, as --gin_file. workdir: the run directory. gin_params, imports: one or several
            too, as the flags. how: base, as the flag; init_from, init_partly_from, profile, step_timeout of
            launch.run.loop.train.

    Returns:
        launch.run.loop.Finished. An interrupt of the kernel saves and returns; the same call goes on.

    Raises:
        UserError: as the command's one line.
    """
    import jax

    from launch.run import loop, registry

    if not jax.config.jax_compilation_cache_dir:
        host.enable_compilation_cache(COMPILATION_CACHE.default)

    several = lambda given: [str(given)] if isinstance(given, str | os.PathLike) else [*map(str, given)]
    experiment = parsed(several(gin_files), several(gin_params), several(imports), how.pop("base", None))
    how |= {"imports": registry.imported(), "unset": registry.unset()}
    return loop.train(experiment, workdir, config=registry.operative_config(), **how)


def parsed(gin_files, gin_params, imports, base=None):
    """The Experiment of these flags."""
    from launch.run import registry
    from launch.run.base import bindings

    found = registry.parse(gin_files, gin_params, imports)
    if base is None:
        return found
    lines = bindings(base, found)
    try:
        return registry.parse(gin_files, [*lines, *gin_params], imports)
    except UserError as error:  # of what the base has brought, since all else has been parsed above
        raise UserError(f"--base={base} does not go with {' and '.join(gin_files)}: {error}") from error


def main(argv):
    if argv[1:]:
        raise UserError(f"'{argv[1]}' is not a flag: did you mean --gin_file={argv[1]}? See --help")
    if LIST.value or DESCRIBE.value:
        from launch.run import catalogue

        print(catalogue.describe(DESCRIBE.value, IMPORT.value) if DESCRIBE.value else catalogue.listing(IMPORT.value))
        return
    if not GIN_FILE.value:
        raise UserError("--gin_file is required, as in --gin_file=runs/demo.gin")
    if not (WORKDIR.value or DRY_RUN.value):
        raise UserError("--workdir is required, as in --workdir=/tmp/demo; only --dry_run needs none")
    if sum(map(bool, (INIT_FROM.value, INIT_PARTLY_FROM.value, BASE.value))) > 1:
        raise UserError("--base, --init_from and --init_partly_from are ways to begin: give one of them")
    if PROFILE.value and not re.fullmatch(r"\d+:\d+", PROFILE.value):
        raise UserError(f"--profile={PROFILE.value} must be two steps, as in 10:13")
    if PROFILE.value and not int.__lt__(*map(int, PROFILE.value.split(":"))):
        raise UserError(f"--profile={PROFILE.value} names no step: the first comes before the second, as in 10:13")

    host.enable_huge_pages()  # before jax allocates
    host.enable_compilation_cache(COMPILATION_CACHE.value)
    distributed.join()
    from launch.aot import dry_run
    from launch.run import experiment, loop, registry

    mesh = [f"Experiment.mesh = {MESH.value!r}"] if MESH.value else []
    found = parsed(GIN_FILE.value, GIN_PARAM.value + mesh, IMPORT.value, BASE.value)
    if DRY_RUN.value:
        found = experiment.completed(experiment.bound(found))
        experiment.validate(found, dry_run.stand_in_devices(found.mesh))
        print(dry_run.report(found))
        return
    profile = PROFILE.value and tuple(map(int, PROFILE.value.split(":")))
    how = {"init_from": INIT_FROM.value, "init_partly_from": INIT_PARTLY_FROM.value, "profile": profile}
    how |= {"imports": registry.imported(), "unset": registry.unset(), "step_timeout": watchdog.STEP_TIMEOUT.value}
    done = loop.train(found, WORKDIR.value, config=registry.operative_config(), **how)
    sys.exit(INTERRUPTED_CODE.value if done.interrupted else 0)


if __name__ == "__main__":
    cli.run(main)
