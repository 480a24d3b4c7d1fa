"""Compare runs: one table and one picture of what they reached, what they took and how they differ.

    python -m launch.compare /tmp/one /tmp/other                   a table on the console
    python -m launch.compare 'sweeps/rates/*' --by=learning_rate --metric=valid/bits_per_byte --out=/tmp/compared

A run is a directory that launch.train made, on a disk or in a bucket (gs://); globs are taken, in quotes. Runs that
differ in Experiment.seed alone are one row: n of them, with the mean and the sample standard deviation. A run that has
not ended has a row of its own, and is marked. Without --metric the scores are each run's best_metric at its best, and
all that the last evaluations have in common. --out=DIR writes compare.md, compare.csv and compare.png too.
"""

import sys

from absl import flags

from launch.run import cli
from launch.storage import filesystem
from paradigm.errors import UserError


def main(argv):
    if not argv[1:]:
        raise UserError("which runs? Give directories, as in python -m launch.compare /tmp/one '/tmp/sweep/*'")
    print(compared(argv[1:], METRIC.value, BY.value, OUT.value))


def compared(runs, metrics=(), by=(), out=None):
    """The table as text; with `out`, a directory, compare.md, compare.csv and compare.png are written there.

    Args:
        runs: paths, URLs and globs. metrics, by: as launch.results.table.compare takes them.

    Raises:
        UserError: as launch.results.runs.find and launch.results.table.compare; or `out` cannot be written.
    """
    from launch.results import picture, table
    from launch.results.runs import find

    found, left_out = find(runs)
    for line in left_out:
        print(line, file=sys.stderr)
    comparison = table.compare(found, metrics, by)
    text = table.console(comparison)
    if out:
        files = {
            "compare.md": table.markdown(comparison).encode(),
            "compare.csv": table.as_csv(comparison).encode(),
            "compare.png": picture.draw(comparison),
        }
        where = filesystem.as_path(out)
        try:
            with filesystem.explained(where):
                where.mkdir(parents=True, exist_ok=True)
                for name, content in files.items():
                    filesystem.of(where).put(where / name, content)
        except OSError as error:
            raise UserError(f"--out={out} cannot be written: {filesystem.reason(error)}") from error
        text += f"\n{', '.join(files)}: in {where}"
    return text


if __name__ == "__main__":
    METRIC = flags.DEFINE_list("metric", [], "Scores, as in valid/knn,valid/linear; 'valid/' may be left out.")
    BY = flags.DEFINE_list("by", [], "Order rows by a setting, as in learning_rate; or by objective or adaptation.")
    OUT = flags.DEFINE_string("out", None, "A directory for compare.md, compare.csv and compare.png.")
    cli.run(main)
