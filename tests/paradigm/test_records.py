"""What the sources of every modality share."""

import pickle

import numpy as np
import pytest

from paradigm.dataset import Mixture
from paradigm.errors import UserError
from paradigm.records import Shards, Subset, groups_held_out, hash_of, held_out, keys_of, sample, spread


@pytest.fixture
def shards(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    paths, counts = [], (3, 1, 4)
    for k, count in enumerate(counts):
        paths.append(str(tmp_path / f"{k}.array_record"))
        writer = ArrayRecordWriter(paths[-1], "group_size:1")
        for row in range(count):
            writer.write(f"{k} {row}".encode())
        writer.close()
    return Shards(tuple(paths), counts, "thing")


ALL = [b"0 0", b"0 1", b"0 2", b"1 0", b"2 0", b"2 1", b"2 2", b"2 3"]


def test_shards_are_one_sequence_in_any_order(shards):
    assert len(shards) == 8 and [shards[i] for i in range(8)] == shards.read(range(8)) == ALL
    order = [7, 0, 3, 2, 7, 4]
    assert shards.read(np.array(order)) == [ALL[i] for i in order] and shards.read([]) == []
    for i, (k, row) in enumerate(raw.decode().split() for raw in ALL):
        assert shards.name(i) == f"{shards.paths[int(k)]} thing {row}"
    copy = pickle.loads(pickle.dumps(shards))  # with its files open
    assert copy.read(range(8)) == ALL


def test_a_file_of_another_length_is_refused_when_it_is_read(shards, tmp_path):
    other = Shards(shards.paths, (3, 1, 5), "thing")
    assert other[0] == b"0 0"
    with pytest.raises(UserError, match=r"2.array_record has 4 things instead of 5: prepare it again$"):
        other[8]
    (tmp_path / "0.array_record").write_bytes(b"no records")
    with pytest.raises(UserError, match=r"0.array_record: cannot be read as ArrayRecord"):
        Shards(shards.paths, shards.counts)[0]


class Letters:
    fingerprint = "letters"

    def __len__(self):
        return 26

    def __getitem__(self, i):
        return chr(ord("a") + i)


def test_a_subset_is_a_source_and_drawn_once():
    some = Subset(Letters(), np.array([3, 1]), "two")
    assert [some[0], some[1], len(some), some.name(0), some.fingerprint] == ["d", "b", 2, "record 3", "two"]
    drawn = Subset.drawn(Letters(), 9, 5)
    found = [drawn[i] for i in range(len(drawn))]
    assert found == sorted(set(found)) and len(found) == 9 and drawn.fingerprint == "letters[9, 5]"
    again, other = (Subset.drawn(Letters(), 9, seed).positions.tolist() for seed in (5, 6))
    assert drawn.positions.tolist() == again != other
    assert Subset.drawn(Letters(), None, 5).positions.tolist() == list(range(26))
    assert drawn.__getitems__([2, 0]) == [found[2], found[0]]


@pytest.mark.parametrize("size, count", [(1000, 10), (1000, 7), (10, 10), (3, 2), (10**10, 50), (5, 0)])
def test_a_sample_has_one_of_each_stretch(size, count):
    places = spread(size, count, 3)
    assert places.dtype == np.int64 and places.shape == (count,)
    assert all(i * size // count <= place < (i + 1) * size // count for i, place in enumerate(places.tolist()))


def test_a_sample_of_what_takes_turns_has_all_of_it():
    """Records of ten classes in turn, of which steps of 45 would meet two."""
    assert len(set((spread(360, 8) % 10).tolist())) > 3
    assert len({tuple(spread(360, 8, seed).tolist()) for seed in range(5)}) == 5


def test_a_sample_of_a_mixture_is_spread_over_all_of_it():
    of = lambda name, size: Subset(Letters(), np.arange(size) % 26, name)
    mixed = Mixture([of("a", 30), of("b", 1), of("c", 69)], [1, 5, 1])
    assert sample(mixed, 100) is mixed and sample(Letters(), 26).fingerprint == "letters"
    few = sample(mixed, 10, 2)
    assert [len(s) for s in few.sources] == [3, 7] and few.fingerprint == "a[3, 2]*1+c[7, 2]*1"
    assert sample(Letters(), 9, 5).positions.tolist() == Subset.drawn(Letters(), 9, 5).positions.tolist()


def test_what_is_held_out_is_what_it_has_always_been():
    """Numbers of earlier versions: a record that moved would have been trained on and then be evaluated."""
    names = [f"cat/{i}.png" for i in range(8)] + ["Ärger", "\udcff"]
    assert [round(hash_of(name), 9) for name in names[7:]] == [0.146280788, 0.139784765, 0.65649479]
    keys = keys_of(names)
    assert keys[7:].tolist() == [687143713158494266, 11608939227205631282, 2731937019198598940]
    assert held_out(keys, 0.3).tolist() == np.flatnonzero(groups_held_out(keys, 0.3)).tolist() == [1, 7, 9]


def test_the_smallest_keys_of_each_class_are_held_out():
    keys = np.array([5, 1, 4, 2, 3, 2**64 - 1, 9, 9, 9], np.uint64)
    classes = [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert held_out(keys, 0.5, classes).tolist() == [1, 3, 4, 6, 7]  # half of three is two, and equal keys go in order
    assert held_out(keys, 0.01, classes).tolist() == [1, 4, 6]  # one at least
    assert held_out(keys, 0.99, classes).tolist() == [1, 2, 3, 4, 6, 7]  # and one is left
    assert held_out(keys[:1], 0.5).tolist() == []
    assert held_out(keys, 0.25).tolist() == [1, 3]


def test_groups_stay_together():
    keys = np.array([7, 3, 7, 5, 3, 2**64 - 1], np.uint64)
    assert groups_held_out(keys, 0.5).tolist() == [False, True, False, True, True, False]
    assert groups_held_out(keys, 0.01).tolist() == [False, True, False, False, True, False]
    assert groups_held_out(keys, 0.99).tolist() == [True, True, True, True, True, False]
    assert not groups_held_out([4, 4], 0.5).any()
