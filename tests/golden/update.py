"""Writes tests/golden/NAME.txt: a run file as one setting a line, defaults included.

    python -m tests.golden.update        (or: make golden)

A change of a default anywhere then shows in review as a change of the runs that it reaches. Recorded are the runs of
papers and one of every other objective, each in full or, where fewer lines say it, as a difference from an earlier one.
"""

import functools
import pathlib

from launch.run import registry
from launch.run.experiment import bound, flatten

HERE = pathlib.Path(__file__).parent
SHORT = 0.3  # a difference is written if it has fewer lines than this share of the whole


def runs() -> list[str]:
    """'runs/demo.gin' and all others."""
    return sorted(path.relative_to(registry.SHIPPED).as_posix() for path in registry.SHIPPED.glob("runs/**/*.gin"))


@functools.cache
def objective_of(run: str) -> str:
    return type(registry.parse([run]).objective).__name__


def recorded() -> list[str]:
    """The runs of papers, directly below runs/, and the first of any objective that none of them trains."""
    papers = [run for run in runs() if run.count("/") == 1]
    known, others = set(map(objective_of, papers)), []
    for run in (run for run in runs() if run not in papers):
        if objective_of(run) not in known:
            known.add(objective_of(run))
            others.append(run)
    return papers + others


def golden(run: str) -> pathlib.Path:
    return HERE / (run.removeprefix("runs/").removesuffix(".gin").replace("/", "-") + ".txt")


def dump(run: str) -> list[str]:
    """One setting a line, whatever lies on this machine: the vocabulary of a run elsewhere stays unknown."""
    experiment = registry.parse([run])
    read = str(getattr(experiment.data, "tokenizer", ""))
    if not any(read.startswith(f"{source.path}/") for source in experiment.init):
        experiment = bound(experiment)
    return [f"{name}: {value}\n" for name, value in flatten(experiment).items()]


def goldens() -> dict[pathlib.Path, str]:
    """The text of each file: a dump, or `like NAME` and the lines that go (-) and come (+)."""
    whole, texts = {}, {}
    for run in recorded():
        lines = dump(run)
        ways = [["like " + golden(other).stem + "\n", *_difference(there, lines)] for other, there in whole.items()]
        shortest = min(ways, key=len, default=lines)
        if len(shortest) >= SHORT * len(lines):
            whole[run] = shortest = lines
        texts[golden(run)] = "".join(shortest)
    return texts


def _difference(old, new):
    """Lines that go and lines that come, those of one setting beside each other: no two of a dump have its name."""
    before, after = set(old), set(new)
    changed = [f"- {line}" for line in old if line not in after] + [f"+ {line}" for line in new if line not in before]
    return sorted(changed, key=lambda line: (line[2:].partition(":")[0], line[0] == "+"))


if __name__ == "__main__":
    texts = goldens()
    for path in HERE.glob("*.txt"):
        if path not in texts:
            path.unlink()
    for path, text in texts.items():
        path.write_text(text)
        print(path)
