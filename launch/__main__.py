"""Say what there is: `python -m launch` lists the commands, one line each."""

import pathlib
import re
import runpy
import sys

from launch.run import catalogue, cli
from paradigm.errors import UserError


def commands():
    """{name: its one line} of the commands of this package: its modules that a person starts."""
    found = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        if not path.stem.startswith("__") and "cli.run(main)" in path.read_text("utf-8"):
            found[path.stem] = catalogue.module_line(path)
    return found


def main(argv):
    if argv[1:]:
        name = argv[1].removeprefix("launch.")
        known = f"did you mean python -m launch.{name}?" if name in commands() else "the commands are"
        raise UserError(
            f"python -m launch takes no arguments: {known} {'' if name in commands() else ', '.join(commands())}"
        )
    width = max(map(len, commands()))
    lines = [f"  python -m launch.{name:<{width}}  {line}" for name, line in commands().items()]
    print("\n".join(["Commands; each answers --help:", "", *lines, ""]))
    print("Runs, objectives, models, data and all else that a run file may name:")
    print("  python -m launch --list, and --describe=NAME for the settings of one of them")
    print("In Python, from launch import load: a trained run.")
    sys.stdout.flush()


if __name__ == "__main__":
    if any(re.match("--?(list|describe)", word) for word in sys.argv[1:]):
        runpy.run_module("launch.train", run_name="__main__", alter_sys=True)
    else:
        cli.run(main)
