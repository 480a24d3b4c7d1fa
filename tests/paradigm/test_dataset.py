import pickle
import subprocess
import sys

import numpy as np
import pytest

from paradigm.dataset import Dataset, ExampleRng, Mixture, Repeated, feistel, generators, mix64
from paradigm.errors import UserError
from paradigm.schedule import FINAL


class Numbers:
    """Records start, start + 1 ...; those in `broken` raise when read."""

    def __init__(self, size, start=0, broken=()):
        self.size, self.start, self.broken = size, start, set(broken)
        self.fingerprint = f"numbers {size} {start}"
        self.read = 0

    def __len__(self):
        return self.size

    def __getitem__(self, position):
        assert 0 <= position < self.size
        self.read += 1
        if position in self.broken:
            raise OSError("bad sector")
        return {"x": np.int64(self.start + position)}

    def name(self, position):
        return f"numbers.bin record {position}"


class Noise:
    def __call__(self, example, rng, step, train):
        return {"x": example["x"], "noise": rng.random(3), "step": np.int64(step), "train": np.bool_(train)}


def equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype == b[name].dtype


# ---------------------------------------------------------------------------------------------------------- the shuffle


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 64, 1000, 4097])
def test_feistel_is_a_permutation(size):
    orders = [feistel(np.arange(size), size, mix64(0, epoch)) for epoch in range(4)]
    for order in orders:
        assert sorted(order) == list(range(size))
    if size > 4:
        assert any(list(orders[0]) != list(o) for o in orders[1:])


def test_feistel_is_uniform():
    # Every ordered pair of first two elements is equally likely: chi-square over 90 pairs, 99.99 % quantile about 147.
    epochs = 20_000
    keys = np.repeat(mix64(3, np.arange(epochs)), 2)
    pairs = feistel(np.tile([0, 1], epochs), 10, keys).reshape(-1, 2)
    counts = np.bincount(pairs[:, 0] * 10 + pairs[:, 1], minlength=100).reshape(10, 10)[~np.eye(10, dtype=bool)]
    assert ((counts - epochs / 90) ** 2 / (epochs / 90)).sum() < 147


def test_feistel_takes_a_key_for_each_position():
    keys = mix64(7, np.array([0, 1, 1, 0]))
    mixed = feistel(np.array([5, 5, 6, 6]), 100, keys)
    for place, key, found in zip([5, 5, 6, 6], keys, mixed):
        assert feistel(np.array([place]), 100, key[None])[0] == found


def test_generators_are_pure_and_independent():
    a, b = generators(1, 2, np.array([5, 6])), generators(1, 2, np.array([6, 7]))
    assert a[1].random() == b[0].random()
    draws = np.array([g.random() for g in generators(0, 1, np.arange(20_000))])
    assert abs(draws.mean() - 0.5) < 0.01 and abs(draws.var() - 1 / 12) < 0.005
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.03


# ------------------------------------------------------------------------------------------------------------- training


def test_example_is_a_function_of_seed_and_index():
    data = Dataset(Numbers(100), Noise(), 8, seed=1)
    batches = [data.batch(step) for step in range(30)]
    for i in [0, 3, 8, 99, 100, 239]:
        again = Dataset(Numbers(100), Noise(), 8, seed=1).example(i)
        equal(again, {k: v[i % 8] for k, v in batches[i // 8].items()})
    assert data.example(17)["step"] == 2
    noise = np.concatenate([b["noise"] for b in batches])
    assert len(np.unique(noise)) == noise.size, "no two examples share their randomness, not in a later epoch either"
    other = Dataset(Numbers(100), Noise(), 8, seed=2).batch(0)
    assert (other["x"] != batches[0]["x"]).any() and (other["noise"] != batches[0]["noise"]).all()


def test_restart_continues_the_stream():
    fresh = Dataset(Numbers(37), Noise(), 4, seed=5)
    started_over = pickle.loads(pickle.dumps(Dataset(Numbers(37), Noise(), 4, seed=5)))
    for step in range(20, 25):
        equal(fresh.batch(step), started_over.batch(step))


def test_rows_are_slices_of_the_global_batch():
    data = Dataset(Mixture([Numbers(50), Numbers(50, 1000)], [1, 2]), Noise(), 8, seed=1)
    whole = data.batch(3)
    equal(data.batch(3, slice(2, 5)), {k: v[2:5] for k, v in whole.items()})
    equal(data.batch(3, (7, 0, 3)), {k: v[[7, 0, 3]] for k, v in whole.items()})
    source = Numbers(50)
    Dataset(source, Noise(), 8).batch(0, slice(0, 2))
    assert source.read == 2  # nothing is read that is not asked for


def test_epochs_hold_every_record_once_in_another_order():
    data = Dataset(Numbers(24), Noise(), 8)
    stream = np.concatenate([data.batch(step)["x"] for step in range(6)])
    assert sorted(stream[:24]) == sorted(stream[24:]) == list(range(24))
    assert list(stream[:24]) != list(stream[24:])


def test_a_source_that_changes_by_epoch_is_told_the_epoch_by_one_number():
    class Changing(Numbers):
        changes_by_epoch = True

        def __getitem__(self, position):
            return {"x": np.int64(position % self.size), "n": np.int64(position // self.size)}

    data, plain = Dataset(Changing(24), lambda e, *_: e, 8), Dataset(Numbers(24), Noise(), 8)
    batches = [data.batch(step) for step in range(9)]
    for step, batch in enumerate(batches):
        np.testing.assert_array_equal(batch["x"], plain.batch(step)["x"])
    numbers = [set(np.concatenate([b["n"] for b in batches[k : k + 3]]).tolist()) for k in (0, 3, 6)]
    assert [len(n) for n in numbers] == [1, 1, 1] and len(set.union(*numbers)) == 3
    assert all(0 <= n < 2**31 for n in set.union(*numbers))
    assert set(Dataset(Changing(24), lambda e, *_: e, 8, seed=1).batch(0)["n"].tolist()).isdisjoint(numbers[0])
    mixed = Dataset(Mixture([Numbers(24, 100), Changing(24)], [1, 1]), lambda e, *_: {"n": e.get("n", np.int64(-1))}, 8)
    assert (mixed.batch(0)["n"] == -1).sum() == 4
    held_out = Dataset(Changing(24), lambda e, *_: e, 8, train=False)
    assert not any(held_out.batch(step)["n"].any() for step in range(3))


def test_index_has_two_words():
    data = Dataset(Numbers(10), Noise(), 4)
    index = data.batch(2**33)["index"]
    assert index.dtype == np.uint32
    assert index.tolist() == [[8, 0], [8, 1], [8, 2], [8, 3]]


# ------------------------------------------------------------------------------------------------------------- mixtures


def test_mixture_proportions_are_exact_in_each_batch():
    data = Dataset(Mixture([Numbers(100), Numbers(1000, 1000), Numbers(10, 5000)], [3, 6.5, 0.5]), Noise(), 10, seed=4)
    batches = np.stack([data.batch(step)["x"] for step in range(400)])
    first, last = (batches < 1000).sum(1), (batches >= 5000).sum(1)
    assert set(first) == {3} and set(last) <= {0, 1}
    assert 150 < last.sum() < 250
    # No source repeats a record before it has given all of them.
    counts = np.bincount(batches[(batches >= 1000) & (batches < 5000)] - 1000)
    assert counts.max() - counts.min() <= 1
    # Sources stand at all places of the batch.
    assert ((batches < 1000).sum(0) > 60).all()


class Step:
    """1 before step 50, 0 after."""

    def __call__(self, step):
        return (np.asarray(step) < 50).astype(float)

    def __repr__(self):
        return "Step()"


def test_mixture_weights_follow_a_schedule():
    mixture = Mixture([Numbers(100), Numbers(100, 1000)], [Step(), 1.0])
    data = Dataset(mixture, Noise(), 8, seed=4)
    assert [(data.batch(step)["x"] < 1000).sum() for step in (0, 49, 50, 5000)] == [4, 4, 0, 0]
    late = Dataset(mixture, Noise(), 8, seed=4)
    equal(late.batch(5000), data.batch(5000))
    assert "Step()" in mixture.fingerprint and data.fingerprint == late.fingerprint


@pytest.mark.parametrize(
    "weights, text",
    [
        ([1.0], "a mixture of 2 sources has 1 weights: give each one"),
        ([0, 0], r"mixture weights at step 0 are \[0.0, 0.0\]: they must be finite, .* and one at least above 0"),
        ([1, -1], "must be finite, not negative"),
        ([1, float("nan")], "must be finite, not negative"),
    ],
)
def test_mixture_errors(weights, text):
    with pytest.raises(UserError, match=text):
        Mixture([Numbers(4), Numbers(4)], weights)


# ------------------------------------------------------------------------------------------------------- broken records


def test_broken_record_is_replaced_counted_and_named():
    data = Dataset(Numbers(20, broken=[7]), Noise(), 20, seed=3)
    batch, problems = data.read(0)
    assert [(p.record, p.error) for p in problems] == [("numbers.bin record 7", "bad sector")]
    whole = Dataset(Numbers(20), Noise(), 20, seed=3).batch(0)
    row = list(whole["x"]).index(7)
    assert problems[0].index == row and batch["x"][row] != 7
    keep = np.arange(20) != row
    np.testing.assert_array_equal(batch["x"][keep], whole["x"][keep])
    np.testing.assert_array_equal(batch["noise"], whole["noise"])
    equal(Dataset(Numbers(20, broken=[7]), Noise(), 20, seed=3).example(row), {k: v[row] for k, v in batch.items()})


def test_replacements_are_drawn_anew_for_each_index():
    batch, problems = Dataset(Numbers(200, broken=range(50)), Noise(), 200, seed=3).read(0)
    assert len(problems) >= 50 and batch["x"].min() >= 50
    assert np.bincount(batch["x"]).max() < 6


def test_a_source_that_is_all_broken_stops_the_run():
    data = Dataset(Numbers(5, broken=range(5)), Noise(), 4)
    with pytest.raises(UserError, match=r"^16 draws for .* were broken too, .*numbers.bin.*damaged"):
        data.batch(0)


def test_user_errors_of_a_source_are_not_broken_records():
    class Missing(Numbers):
        def __getitem__(self, position):
            raise UserError("shard 3 is gone")

    with pytest.raises(UserError, match="^shard 3 is gone$"):
        Dataset(Missing(5), Noise(), 4).batch(0)


def test_what_is_refused_in_the_preparation_is_of_a_record_that_is_named():
    def refuses(example, rng, step, train):
        if example["x"] == 3:
            raise UserError("it has too many classes")
        return Noise()(example, rng, step, train)

    with pytest.raises(UserError, match="^numbers.bin record 3: it has too many classes$"):
        Dataset(Numbers(5), refuses, 5).batch(0)


def test_errors_of_the_preparation_are_not_broken_records():
    def wrong(example, rng, step, train):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Dataset(Numbers(5), wrong, 4).batch(0)


# ----------------------------------------------------------------------------------------------------------- evaluation


def test_who_draws_does_not_change_what_others_get():
    whole = lambda: ExampleRng(5, 1, 1, 70)
    draws = whole().random(3).tolist()
    assert draws == generators(5, 1, 1, np.array([70]))[0].random(3).tolist()
    a, b = whole().part("a"), whole().part("b")
    shared = [rng.shared("caption").random(3).tolist() for rng in (whole(), a, b, a.part("b"), a)]
    assert all(other == shared[0] for other in shared)  # one choice for all, however often it is asked for
    own = [rng.random(3).tolist() for rng in (a, b, whole().part("a").part("b"), whole().part("b").part("a"))]
    other = [whole().shared("crop").random(3).tolist(), ExampleRng(5, 1, 1, 71).shared("caption").random(3).tolist()]
    assert len({tuple(x) for x in (draws, shared[0], *own, *other)}) == 8
    used = whole()
    used.random(7), used.shared("caption").random(), used.part("b").random()
    assert used.part("a").random(3).tolist() == own[0] and used.shared("caption").random(3).tolist() == shared[0]


class Parts:
    """Notes its own draw, a part's and the shared one."""

    def __call__(self, example, rng, step, train):
        draws = {"own": rng.random(), "part": rng.part("a").random(), "shared": rng.shared("x").random()}
        return {name: np.float64(x) for name, x in draws.items()}


def test_each_example_has_its_streams_wherever_it_is_read():
    data = Dataset(Numbers(50), Parts(), 8, seed=3)
    whole, some = data.batch(2), data.batch(2, [5, 1])
    for name in ("own", "part", "shared"):
        assert len(set(whole[name])) == 8 and some[name].tolist() == whole[name][[5, 1]].tolist()
    assert (data.batch(2)["own"] == [g.random() for g in generators(3, 1, 1, 16 + np.arange(8))]).all()


@pytest.mark.parametrize("size, batch", [(10, 4), (8, 4), (3, 8)])
def test_evaluation_counts_each_example_once(size, batch):
    data = Dataset(Numbers(size), Noise(), batch, train=False)
    batches = [data.batch(step) for step in range(len(data))]
    mask = np.concatenate([b["mask"] for b in batches])
    x = np.concatenate([b["x"] for b in batches])
    assert x[mask == 1].tolist() == list(range(size)) and mask.dtype == np.float32
    assert len(mask) == len(data) * batch and set(mask) <= {0.0, 1.0}
    assert not np.concatenate([b["train"] for b in batches]).any()
    assert set(np.concatenate([b["step"] for b in batches])) == {FINAL}
    equal(data.batch(0), data.batch(0))


def test_evaluation_rows_and_mixtures():
    data = Dataset(Mixture([Numbers(3), Numbers(4, 100)], [1, 1]), Noise(), 4, train=False)
    rows = [[data.batch(step, slice(r, r + 2)) for r in (0, 2)] for step in range(2)]
    assert [b["x"][b["mask"] == 1].tolist() for pair in rows for b in pair] == [[0, 1], [2, 100], [101, 102], [103]]


def test_rows_that_are_all_padding_have_shapes():
    data = Dataset(Numbers(5), Noise(), 4, train=False)
    batch = data.batch(1, slice(2, 4))
    assert batch["mask"].tolist() == [0, 0] and batch["noise"].shape == (2, 3)


def test_evaluation_masks_broken_records():
    batch, problems = Dataset(Numbers(4, broken=[2]), Noise(), 4, train=False).read(0)
    assert batch["mask"].tolist() == [1, 1, 0, 1] and len(problems) == 1


# --------------------------------------------------------------------------------------------------------------- others


def test_errors():
    with pytest.raises(UserError, match="batch_size is 0: it must be at least 1"):
        Dataset(Numbers(5), Noise(), 0)
    with pytest.raises(UserError, match="source 0 of the data set has no records"):
        Dataset(Numbers(0), Noise(), 4)
    with pytest.raises(TypeError, match="no length"):
        len(Dataset(Numbers(5), Noise(), 4))


def test_data_of_another_kind_than_the_objective_reads():
    class Letters(Noise):
        def __call__(self, example, rng, step, train):
            return {"y": example["y"]}

    class Mistaken(Noise):
        def __call__(self, example, rng, step, train):
            return {}[next(iter(example))]

    with pytest.raises(UserError, match="^Letters reads 'y', and numbers.bin record 0 holds x: set Experiment.data to"):
        Dataset(Numbers(5), Letters(), 4).batch(0)
    with pytest.raises(KeyError):  # not of the record: a mistake of ours
        Dataset(Numbers(5), Mistaken(), 4).batch(0)


class Contrasting:
    contrasts = True


class Alone:
    contrasts = False


def test_copies_in_a_batch_are_told_or_refused():
    few = Dataset(Numbers(10), Noise(), 64)
    assert few.check_copies(Alone()) == "a batch of 64 holds each of 10 records 6.4 times"
    with pytest.raises(UserError, match=r"^a batch of 64 holds each of 10 records 6.4 times, and Contrasting takes"):
        few.check_copies(Contrasting())
    mixture = Mixture([Numbers(50), Numbers(14)], [3, 1])
    for enough in (Dataset(Numbers(64), Noise(), 64), Dataset(mixture, Noise(), 56)):
        assert enough.check_copies(Contrasting()) == enough.check_copies(Alone()) == ""
    with pytest.raises(UserError, match="a batch of 64 holds each of 14 records 1.14 times"):
        Dataset(mixture, Noise(), 64).check_copies(Contrasting())


def test_repeated_records_stand_side_by_side_and_are_prepared_apart():
    data = Dataset(Repeated(Numbers(20), 3), Noise(), 12)
    batches = [data.batch(step) for step in range(5)]
    x = np.concatenate([batch["x"] for batch in batches])
    np.testing.assert_array_equal(x.reshape(20, 3), x[::3, None].repeat(3, 1))
    assert len(np.unique(x)) == 20, "an epoch of 60 examples"
    noise = np.concatenate([batch["noise"] for batch in batches])
    assert len(np.unique(noise)) == noise.size
    assert data.check_copies(Alone()) == "" and data.fingerprint != Dataset(Numbers(20), Noise(), 12).fingerprint
    with pytest.raises(UserError, match="each record stands 3 times in a batch, and Contrasting takes the others"):
        data.check_copies(Contrasting())
    held_out = Dataset(Repeated(Numbers(20), 3), Noise(), 20, train=False)
    assert sorted(held_out.batch(0)["x"]) == sorted(Dataset(Numbers(20), Noise(), 20, train=False).batch(0)["x"])


def test_fingerprint_names_the_stream():
    base = Dataset(Numbers(5), Noise(), 4).fingerprint
    assert base == Dataset(Numbers(5), Noise(), 4).fingerprint
    others = [Dataset(Numbers(6), Noise(), 4), Dataset(Numbers(5), Noise(), 5), Dataset(Numbers(5), Noise(), 4, seed=1)]
    assert len({base, *(d.fingerprint for d in others)}) == 4


def test_numpy_alone():
    code = "import sys, paradigm.dataset; assert not {'jax', 'flax', 'grain', 'absl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
