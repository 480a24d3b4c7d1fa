"""The data of a run, opened: windows long enough for every part, and one tokenizer for data and objective."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from launch.run.data import Data, labels_of
from paradigm.combine import Alternate, Stages
from paradigm.dataset import Mixture
from paradigm.errors import UserError
from paradigm.objective import Loss, Term
from paradigm.records import Prepared
from paradigm.schedule import FINAL, Linear
from paradigm.step import make_eval_step
from t5like.tokenizers import ByteTokenizer
from tests import miniatures
from tests.launch import small


@dataclasses.dataclass(frozen=True)
class Text(miniatures.TwoTerms):
    """An objective whose ids are those of a vocabulary."""

    raw_length: int = 64
    data_vocabulary: Any = None


@dataclasses.dataclass(frozen=True)
class TextData(miniatures.NumbersData):
    """Numbers that claim a tokenizer, and note the window that was asked for."""

    windows: tuple = ()
    tokenizer: Any = ByteTokenizer()

    def build(self, cache_dir, window=None, progress=True):
        object.__setattr__(self, "windows", self.windows + (window,))
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


def test_a_run_reads_data_of_its_own_vocabulary_alone(tmp_path):
    """By fingerprint, whatever the sizes are; what is not learnt yet is known by its ids."""
    own, learnt = ByteTokenizer().vocabulary, lambda v: dataclasses.replace(v, fingerprint="")
    turns = lambda v: Alternate(parts=(("a", Text()), ("b", Text(data_vocabulary=v))), pattern=("a", "b"))
    for objective in (Text(data_vocabulary=own), Text(data_vocabulary=learnt(own)), turns(own), Text()):
        assert opened(tmp_path, objective)[0].vocabulary == own
    others = dataclasses.replace(own, fingerprint="sentencepiece:abc"), learnt(ByteTokenizer(50).vocabulary)
    for other, name in zip(others, ("359 ids, sentencepiece:abc", "309 ids")):
        for objective in (Text(data_vocabulary=other), turns(other)):
            wanted = f"another vocabulary: the run has {name}, and the data has 359 ids, bytes:100"
            with pytest.raises(UserError, match=wanted):
                opened(tmp_path, objective)


@dataclasses.dataclass(frozen=True)
class Bare:
    """A recipe that keeps to no contract."""

    def build(self, cache_dir, window=None, progress=True):
        return self


def test_what_a_recipe_builds_keeps_to_the_contract(tmp_path):
    with pytest.raises(UserError, match="^Bare.build gave a Bare: let that inherit paradigm.records.Prepared$"):
        Data(small.experiment(data=Bare()), tmp_path)


@dataclasses.dataclass(frozen=True)
class Twice(miniatures.NumbersData):
    repeats: int = 2
    classes: tuple = ("few", "many")


def test_a_run_takes_repeats_and_classes_as_data_give_them(tmp_path):
    data, plain = (Data(small.experiment(data=recipe), tmp_path) for recipe in (Twice(), miniatures.NumbersData()))
    assert data.train.times == 2 and data.labels == ("few", "many")
    assert plain.train.times == 1 and plain.labels == ()


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


@dataclasses.dataclass(frozen=True)
class Sorted(Prepared):
    """A recipe of validation records that are sorted: 300 of each of ten classes, one class after the other.

    parts: of a mixture that they are spread over. broken: every so many cannot be read.
    """

    parts: int = 1
    broken: int = 0

    def build(self, cache_dir, window=None, progress=True):
        return self

    def source(self, split):
        parts = [SortedSource(part * 3000 // self.parts, 3000 // self.parts, self.broken) for part in range(self.parts)]
        return Mixture(parts, [1] * self.parts) if self.parts > 1 else parts[0]


@dataclasses.dataclass(frozen=True)
class SortedSource:
    begin: int
    count: int
    broken: int
    fingerprint = "sorted"

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if self.broken and i % self.broken:
            raise ValueError("broken")
        return {"x": np.full(miniatures.WIDTH, (self.begin + i) // 300, np.float32)}


def classes(batch):
    """How many of each class a batch holds, padding left out."""
    return np.bincount(batch["x"][batch["mask"] > 0, 0].astype(int), minlength=10)


@pytest.mark.parametrize("parts", [1, 4])
def test_validation_is_a_fair_sample_of_a_sorted_source(tmp_path, parts):
    """The same whenever it is read, whatever the run's seed, and however many processes share its rows."""
    opened = lambda **more: Data(small.experiment(data=Sorted(parts), batch_size=25, **more), tmp_path)
    data = opened(eval_batches=4)
    read = list(data.batches())
    assert sum(map(classes, read)).tolist() == [10] * 10 and len(read) == 4
    again = list(opened(eval_batches=4, seed=7).batches())
    halves = zip(data.batches(rows=range(12)), data.batches(rows=range(12, 25)))
    for one, other, (low, high) in zip(read, again, halves, strict=True):
        assert (one["x"] == other["x"]).all()
        assert (one["x"] == np.concatenate([low["x"], high["x"]])).all()
    assert sum(map(classes, opened(eval_batches=120).batches())).tolist() == [300] * 10


@pytest.mark.parametrize("parts", [1, 4])
def test_examples_are_spread_over_a_sorted_source(tmp_path, parts):
    """However few batches are validated: pictures and samples show what there is."""
    data = Data(small.experiment(data=Sorted(parts), eval_batches=1), tmp_path)
    assert classes(data.examples(10)).tolist() == [1] * 10
    assert np.count_nonzero(classes(data.examples(4))) == 4
    assert all((x == y).all() for x, y in zip(data.examples(3).values(), data.examples(3).values()))
    assert classes(data.examples(4000)).tolist() == [300] * 10


def test_examples_that_cannot_be_read_are_left_out(tmp_path, capsys):
    data = Data(small.experiment(data=Sorted(broken=2)), tmp_path)
    few = data.examples(8)
    assert few["mask"].tolist() == [1] * 8 and np.count_nonzero(classes(few)) > 5
    assert "is broken and left out" in capsys.readouterr().err
    assert len(Data(small.experiment(data=Sorted(broken=10)), tmp_path).examples(2)["mask"]) == 1
    with pytest.raises(UserError, match="draws for the place of a broken record were broken too"):
        Data(small.experiment(data=Sorted(broken=10**6)), tmp_path).examples(2)


@pytest.mark.parametrize("content", [b"", b'["a", "b', b"\xff\xfe", b'{"a": 0}', b"[0, 1]"])
def test_a_damaged_list_of_classes_is_named(content, tmp_path):
    (tmp_path / "labels.json").write_bytes(content)
    with pytest.raises(UserError, match=r"labels.json is no list of names: put it back, or go on with the run"):
        labels_of(tmp_path)
