"""The data of a run, opened: windows long enough for every part, and one tokenizer for data and objective."""

import dataclasses
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from launch.run.data import Data
from paradigm.combine import Alternate, Stages
from paradigm.errors import UserError
from paradigm.objective import Loss, Term
from paradigm.schedule import FINAL, Linear
from paradigm.step import make_eval_step
from tests import miniatures
from tests.launch import small


@dataclasses.dataclass(frozen=True)
class Text(miniatures.TwoTerms):
    raw_length: int = 64
    vocab_size: int = 300
    extra_ids: int = 100
    model: Any = None


@dataclasses.dataclass(frozen=True)
class TextData(small.NumbersData):
    """Numbers that claim a tokenizer, and note the window that was asked for."""

    windows: tuple = ()
    vocab_size: int = 300

    def build(self, cache_dir, window=None, progress=True):
        object.__setattr__(self, "windows", self.windows + (window,))
        object.__setattr__(self, "tokenizer", types.SimpleNamespace(vocab_size=self.vocab_size, extra_ids=100))
        return self


def opened(tmp_path, objective, **settings):
    recipe = TextData(**settings)
    return Data(small.experiment(objective, data=recipe), tmp_path), recipe


def test_the_window_is_the_longest_that_a_part_reads(tmp_path):
    pair = Alternate(parts=(("a", Text()), ("b", Text(raw_length=96))), pattern=("a", "b"))
    assert opened(tmp_path, Text())[1].windows == (64,)
    assert opened(tmp_path, pair)[1].windows == (96,)
    recipe = TextData()
    Data(small.experiment(miniatures.TwoTerms(), data=recipe), tmp_path)
    assert recipe.windows == (None,)


def test_objective_and_tokenizer_must_count_the_same_ids(tmp_path):
    opened(tmp_path, Text(model=types.SimpleNamespace(vocab_size=384)))  # a model may round up
    with pytest.raises(
        UserError, match="Text.vocab_size=300 but the data's tokenizer has 400: set Text.vocab_size=400"
    ):
        opened(tmp_path, Text(), vocab_size=400)
    with pytest.raises(UserError, match="Text.extra_ids=50 but the data's tokenizer has 100"):
        opened(tmp_path, Alternate(parts=(("a", Text()), ("b", Text(extra_ids=50))), pattern=("a", "b")))
    with pytest.raises(UserError, match="the model of Text has 256 ids and the data's tokenizer 300"):
        opened(tmp_path, Text(model=types.SimpleNamespace(vocab_size=256)))


@dataclasses.dataclass(frozen=True)
class Fill:
    """preprocess: every number is the schedule's value at the step."""

    schedule: Any

    def __call__(self, example, rng, step, train):
        return {"x": np.full(miniatures.WIDTH, self.schedule(step), np.float32)}


@dataclasses.dataclass(frozen=True)
class Scheduled(miniatures.TwoTerms):
    schedule: Any = Linear(peak=1.0, final=5.0, total_steps=1000)

    @property
    def preprocess(self):
        return Fill(self.schedule)

    def loss(self, params, extra, batch, ctx):
        mask = batch["mask"]
        return Loss({"x": Term(jnp.sum(batch["x"][:, 0] * mask), mask.sum(), self.schedule(ctx.step))})


@pytest.mark.parametrize("combine", [Stages, Alternate])
def test_every_phase_is_evaluated_at_the_final_step(tmp_path, combine):
    """On the host and on the device, whichever phase is current then."""
    how = {"boundaries": (10,)} if combine is Stages else {"pattern": ("a", "b")}
    later = Scheduled(schedule=Linear(peak=1.0, final=7.0, total_steps=10**6))
    objective = combine(parts=(("a", Scheduled()), ("b", later)), **how)
    data = opened(tmp_path, objective)[0]
    for phase, value in (("a", 5.0), ("b", 7.0)):
        (batch, *_) = data.batches(phase)
        assert set(batch) == {f"{phase}/x", "index", "mask"} and (batch[f"{phase}/x"] == value).all()
        metrics = make_eval_step(objective, phase=phase)({}, {"a": {}, "b": {}}, batch)
        total, weight = metrics[f"loss/{phase}/x"]
        assert total / weight == value * value
    assert data.train.batch(0)["a/x"][0, 0] == 1.0 and FINAL > 10**6


def test_evaluators_can_remember_by_data_and_read_it_again(tmp_path):
    import weakref

    data, _ = opened(tmp_path, Text())
    assert weakref.WeakKeyDictionary({data: 1})[data] == 1
    first, again = list(data.batches()), list(data.batches())
    assert len(first) == len(again) == 3
    assert all((a["x"] == b["x"]).all() for a, b in zip(first, again))
    assert data.train.batch(0)["x"].shape == (16, miniatures.WIDTH)
