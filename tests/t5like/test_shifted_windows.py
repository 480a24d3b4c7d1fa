import pickle

import numpy as np
import pytest

from paradigm.dataset import Dataset
from t5like import prepare as P
from t5like.corrupt import NextTokenWindows
from t5like.data import TextData, TextMixture
from t5like.tokenizers import ByteTokenizer
from t5like.windows import PreparedText
from tests.t5like.corpora import files, make, windows

BYTES, EOS, WINDOW = ByteTokenizer().vocabulary, ByteTokenizer().eos_id, 32


@pytest.fixture
def prepared(folder, tmp_path, monkeypatch):
    """Several files, the last window of most with padding."""
    monkeypatch.setattr(P, "JOB_BYTES", 8000)
    make(folder, tmp_path / "out", WINDOW, valid=0.1)
    return PreparedText(tmp_path / "out", shift_windows=True)


def stored(prepared, split):
    """The windows as they are stored, of each file."""
    found = iter(windows(PreparedText(prepared.directory), split))
    return [[next(found) for _ in range(shard["windows"])] for shard in prepared.meta["shards"][split]]


def by_hand(of_file, shift):
    """[(tokens, segments)] of a file's windows cut `shift` later on the ring of its places, from the stored ones."""
    places, begins = [], True
    for window in of_file:
        for token, segment in zip(window["tokens"].tolist(), window["segments"].tolist()):
            places.append((token, begins) if segment else None)
            begins = token == EOS if segment else begins
    ring, cut = places[shift:] + places[:shift], []
    for start in range(0, len(ring), WINDOW):
        real = [place for place in ring[start : start + WINDOW] if place]
        starts = [bool(i and begins) for i, (_, begins) in enumerate(real)]
        missing = [0] * (WINDOW - len(real))
        cut.append(([t for t, _ in real] + missing, (1 + np.cumsum(starts)).tolist() + missing))
    return cut


@pytest.mark.parametrize("n", [0, 1, 7, WINDOW - 1, WINDOW, 5 * WINDOW + 20])
def test_windows_are_those_of_the_rotated_file(prepared, n):
    source, of_files = prepared.source("train"), stored(prepared, "train")
    assert len(of_files) >= 5 and any(not f[-1]["segments"].all() for f in of_files)
    found = source.__getitems__([place + len(source) * n for place in range(len(source))])
    wanted = [window for of_file in of_files for window in by_hand(of_file, n % WINDOW)]
    assert [(r["tokens"].tolist(), r["segments"].tolist()) for r in found] == wanted
    assert found[0].keys() == of_files[0][0].keys() and found[0]["tokens"].dtype == np.int32


@pytest.mark.parametrize("documents", [1, 2])
def test_documents_that_fill_their_windows(tmp_path, documents):
    """A document begins where a stored window does, which no mark of a window tells, and where the ring closes."""
    for name in "ab"[:documents]:
        (tmp_path / "c").mkdir(exist_ok=True)
        (tmp_path / "c" / f"{name}.txt").write_text(name + "bcdefghijklmnopqrstuvwxyz123456789")
    make(tmp_path / "c", tmp_path / "out", 36, valid=0.0)
    source = PreparedText(tmp_path / "out", shift_windows=True).source()
    text = lambda tokens: "".join(chr(t - 3) for t in tokens if t > EOS)
    found = source.__getitems__([place + documents * 30 for place in range(documents)])
    assert [text(r["tokens"]) for r in found] == [f"56789{x}bcdefghijklmnopqrstuvwxyz1234" for x in "ba"[-documents:]]
    assert [r["segments"].tolist() for r in found] == [[1] * 6 + [2] * 30] * documents


def test_every_epoch_gives_each_token_once_from_another_begin_on(prepared):
    source, all_of = prepared.source("train"), [w for f in stored(prepared, "train") for w in f]
    size, rows = len(source), 128
    data = Dataset(source, NextTokenWindows(BYTES, WINDOW), rows, seed=3)
    steps = [data.batch(step) for step in range(-(-3 * size // rows))]
    tokens, real = (np.concatenate([b[name] for b in steps]) for name in ("targets", "weights"))
    epochs = [np.sort(tokens[k * size : (k + 1) * size][real[k * size : (k + 1) * size] > 0]) for k in range(3)]
    wanted = np.sort(np.concatenate([w["tokens"][w["segments"] > 0] for w in all_of]))
    for epoch in epochs:
        np.testing.assert_array_equal(epoch, wanted)
    as_sets = [{row.tobytes() for row in tokens[k * size : (k + 1) * size]} for k in range(3)]
    assert all(len(a & b) < 0.1 * size for a, b in [as_sets[:2], as_sets[1:], as_sets[::2]])


def test_the_stream_is_a_function_of_seed_and_index(prepared):
    stream = lambda seed: Dataset(
        pickle.loads(pickle.dumps(prepared.source("train"))), NextTokenWindows(BYTES, WINDOW), 8, seed=seed
    )
    data = stream(3)
    for step in (0, 40, 1000):  # a restart, other processes' rows, a single example
        whole = data.batch(step)
        for name, array in stream(3).batch(step, slice(4, 8)).items():
            np.testing.assert_array_equal(array, whole[name][4:])
        np.testing.assert_array_equal(data.example(8 * step + 5)["targets"], whole["targets"][5])
    assert (stream(4).batch(0)["targets"] != data.batch(0)["targets"]).any()
    plain = Dataset(PreparedText(prepared.directory).source("train"), NextTokenWindows(BYTES, WINDOW), 8, seed=3)
    assert plain.fingerprint != data.fingerprint


def test_what_is_held_out_is_as_it_was(prepared):
    shifted, plain = (windows(p, "valid") for p in (prepared, PreparedText(prepared.directory)))
    for a, b in zip(shifted, plain, strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
        np.testing.assert_array_equal(a["segments"], b["segments"])
    assert not getattr(prepared.source("valid"), "changes_by_epoch", False)


def test_the_setting_leaves_what_is_prepared_as_it_is(folder, tmp_path):
    plain, shifted = (TextData(str(folder), shift_windows=on) for on in (False, True))
    built = plain.build(tmp_path / "data", WINDOW, progress=False, workers=1)
    before = files(tmp_path / "data")
    again = shifted.build(tmp_path / "data", WINDOW, progress=False, workers=1)
    assert files(tmp_path / "data") == before and again.meta == built.meta
    of_prepared = TextData(str(tmp_path / "data"), shift_windows=True).build("unused", WINDOW)
    mixed = TextMixture((shifted, plain), (1, 1)).build(tmp_path / "mixed", WINDOW, progress=False, workers=1)
    for source, wanted in ((built, False), (again, True), (of_prepared, True), (mixed.parts[0], True)):
        assert getattr(source.source(), "changes_by_epoch", False) == wanted
    stream = Dataset(mixed.source(), NextTokenWindows(BYTES, WINDOW), 8)
    np.testing.assert_array_equal(stream.batch(500)["targets"], stream.batch(500)["targets"])


def test_a_window_that_is_shifted_is_named(prepared):
    source = prepared.source("train")
    assert source.name(len(source) * 7 + 2) == f"{source.windows.name(2)}, from its token 7 on"
    assert source.name(2) == source.windows.name(2)
