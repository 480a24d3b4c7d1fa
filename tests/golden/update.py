"""Writes tests/golden/NAME.txt: every shipped run file as one setting a line, defaults included.

    python -m tests.golden.update        (or: make golden)

A change of a default anywhere then shows in review as a change of the runs that it reaches.
"""

import pathlib

from launch.run import registry
from launch.run.experiment import bound, flatten

HERE = pathlib.Path(__file__).parent


def runs() -> list[str]:
    """'runs/demo.gin' and all others."""
    return sorted(path.relative_to(registry.SHIPPED).as_posix() for path in registry.SHIPPED.glob("runs/**/*.gin"))


def golden(run: str) -> pathlib.Path:
    return HERE / (run.removeprefix("runs/").removesuffix(".gin").replace("/", "-") + ".txt")


def dump(run: str) -> str:
    return "".join(f"{name}: {value}\n" for name, value in flatten(bound(registry.parse([run]))).items())


if __name__ == "__main__":
    for run in runs():
        golden(run).write_text(dump(run))
        print(golden(run))
