"""A run small enough for a test: the miniature objectives on their recipe, which needs no files."""

import json

from launch.run.experiment import Experiment
from paradigm import optim
from tests import miniatures


def experiment(objective=None, **settings):
    defaults = dict(
        objective=objective or miniatures.TwoTerms(),
        data=miniatures.NumbersData(),
        optimizer=optim.AdamW(learning_rate=0.01),
        total_steps=12,
        batch_size=16,
        log_every=4,
        eval_every=6,
        save_every=3,
        keep=10,
        mesh="data:-1",
    )
    return Experiment(**{**defaults, **settings})


def rows(workdir):
    """The rows of metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "speed"} for row in found]
