import pickle
import subprocess
import sys

import numpy as np
import pytest

from multimodal.data import PairData
from multimodal.preprocess import PreprocessPair, to_row
from paradigm.dataset import Dataset, ExampleRng
from paradigm.errors import UserError
from t5like.tokenizers import ByteTokenizer
from t5like.vocabulary import Vocabulary
from tests.multimodal.pairs import opened, plain, records, shard, table
from tests.vision.pictures import folder, pixels, zipped
from vision.preprocess import PreprocessImage
from vision.synthetic_scenes import Shapes

BYTES = ByteTokenizer(0).vocabulary
IMAGE = PreprocessImage(4, 3)


def ids(text):
    return [byte + 3 for byte in text.encode()]


# ---------------------------------------------------------------------------------------------------------- preparation


def test_captions_become_rows_that_end():
    for text, length, wanted, cut in (
        ("abc", 6, [*ids("abc"), 1, 0, 0], False),
        ("abc", 4, [*ids("abc"), 1], False),
        ("abcd", 4, [*ids("abc"), 1], True),
        ("", 3, [1, 0, 0], False),
    ):
        row, left_out = to_row(ids(text), length, BYTES)
        assert row.tolist() == wanted and row.dtype == np.int32 and left_out == cut
    row, left_out = to_row(ids("abc"), 4, Vocabulary(300, pad=9, bos=7, eos=9))
    assert row.tolist() == [7, *ids("ab"), 9] and left_out
    gpt2 = Vocabulary(300, bos=9, eos=9)  # by its first end a row is pooled, and that must not be its first token
    assert to_row(ids("ab"), 5, gpt2)[0].tolist() == [*ids("ab"), 9, 0, 0]
    assert to_row(ids("ab"), 5, gpt2, starts=True)[0].tolist() == [9, *ids("ab"), 9, 0]


def test_an_example_holds_what_a_batch_does():
    record = {"image": pixels(0), "label": 2, "captions": ("abcd", "b"), "tokens": (ids("abcd"), ids("b"))}
    preprocess = pickle.loads(pickle.dumps(PreprocessPair(IMAGE, 4, vocabulary=BYTES)))
    found = preprocess(record, None, 0, False)
    assert {name: (np.asarray(x).dtype.name, np.shape(x)) for name, x in found.items()} == {
        "image": ("uint8", (4, 4, 3)),
        "aspect": ("float32", ()),
        "label": ("int32", ()),
        "tokens": ("int32", (4,)),
        "cut": ("float32", ()),
    }
    assert found["cut"] == 1 and found["tokens"].tolist() == [*ids("abc"), 1] and found["label"] == 2
    drawn = [preprocess(record, ExampleRng(i), 0, True)["cut"] for i in range(64)]
    assert 16 < sum(drawn) < 48  # either caption
    assert all(preprocess(record, ExampleRng(i), 0, False)["cut"] for i in range(64))  # the first
    assert drawn == [preprocess(record, ExampleRng(i), 0, True)["cut"] for i in range(64)]


def test_a_tower_may_bring_its_own_tokenizer():
    class Upper(ByteTokenizer):
        own = {**ByteTokenizer.own, "bos": 258}

        def encode(self, text):
            return super().encode(text.upper())

    record = {"image": pixels(0), "captions": ("ab",), "tokens": (ids("ab"),)}
    own = PreprocessPair(IMAGE, 6, Upper())
    assert own(record, None, 0, False)["tokens"].tolist() == [258, *ids("AB"), 1, 0, 0]
    assert own.tokens("ab", ByteTokenizer())[0].tolist() == [258, *ids("AB"), 1, 0, 0]
    assert PreprocessPair(IMAGE, 6).tokens("ab", ByteTokenizer())[0].tolist() == [*ids("ab"), 1, 0, 0, 0]
    with pytest.raises(UserError, match=r"^a record has no tokens, only image, label: PairData gives them$"):
        PreprocessPair(IMAGE, 6)({"image": pixels(0), "label": 1}, None, 0, False)
    with pytest.raises(UserError, match=r"^captions of 1 tokens hold no text"):
        PreprocessPair(IMAGE, 1)


# ------------------------------------------------------------------------------------------------------- broken pairs


def damaged(root):
    """A table of twelve lines: a picture is missing, one is no picture, one has no text."""
    files = {f"{i:02d}.png": pixels(i) for i in range(12) if i != 3}
    folder(root, files | {"05.png": b"no picture"})
    lines = [(f"{i:02d}.png", "" if i == 7 else f"caption {i}") for i in range(12)]
    return table(root, ("image", "caption"), *lines)


def test_broken_pairs_are_counted_named_and_replaced(tmp_path):
    prepared = opened(damaged(tmp_path), valid=0.5)
    assert prepared.note.startswith(
        "1 lines without a picture, first line 5 (03.png); 1 lines without text, first line"
    )
    assert len(prepared.source()) + len(prepared.source("valid")) == 12
    named = {}
    for split in ("train", "valid"):
        source = prepared.source(split)
        batch, problems = Dataset(source, PreprocessPair(IMAGE, 16, vocabulary=BYTES), len(source), train=False).read(0)
        assert batch["mask"].sum() == len(source) - len(problems)
        named |= {problem.record[-8:]: problem.error for problem in problems}
    assert {name: error.split(" ")[0] for name, error in named.items()} == {
        "(03.png)": "there",  # is no picture 03.png
        "(05.png)": "cannot",  # identify image file
        "(07.png)": "it",  # has no text
    }
    assert named["(05.png)"] == "cannot identify image file"
    stream = Dataset(prepared.source(), PreprocessPair(IMAGE, 16, vocabulary=BYTES), len(prepared.source()))
    batch, problems = stream.read(0)
    assert problems and batch["mask"].all()
    assert (batch["tokens"] == stream.batch(0)["tokens"]).all()


def test_broken_pairs_may_be_refused(tmp_path):
    path = damaged(tmp_path)
    with pytest.raises(
        UserError, match=r"pairs.tsv has 1 lines without a picture, .*set PairData.on_broken = 'replace'"
    ):
        opened(path, on_broken="refuse")
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("03", "07"))]
    path.write_text("\n".join(lines))
    prepared = opened(path, on_broken="refuse", valid=0.5)
    with pytest.raises(UserError, match=r"\(05.png\) is broken \(cannot identify image file\): mend or remove it"):
        records(prepared), records(prepared, "valid")
    for place in (path, shard(tmp_path / "pairs.tar", 0, 4)):
        with pytest.raises(UserError, match=r"has 54 pixels and PairData.max_pixels is 8"):
            records(opened(place, max_pixels=8))
    zipped(path.with_suffix(".zip"), {f"{i:02}.png": bytes(2 << 20) for i in range(12)})
    with pytest.raises(UserError, match=r"unpacks to 2,097,152 bytes, more than any picture of PairData.max_pixels: "):
        records(opened(path, max_pixels=8))


# --------------------------------------------------------------------------------------------------------- the recipe


def test_a_learnt_tokenizer_is_kept(tmp_path):
    settings = {"shapes": Shapes(size=8, scenes=300, valid_scenes=3), "tokenizer": "sentencepiece:320"}
    first = opened("shapes", tmp_path / "data", **settings)
    assert first.tokenizer.vocab_size == 320 and first.tokenizer.extra_ids == 0
    kept = tmp_path / "data" / "tokenizer" / "sentencepiece.model"
    kept.touch()
    stamp = kept.stat().st_mtime_ns
    again = opened("shapes", tmp_path / "data", **settings)
    assert again.fingerprint == first.fingerprint and kept.stat().st_mtime_ns == stamp
    named = opened("shapes", **settings | {"tokenizer": str(tmp_path / "data" / "tokenizer")})
    assert named.tokenizer.fingerprint == first.tokenizer.fingerprint
    record = first.source("valid")[0]
    assert first.tokenizer.decode(record["tokens"][0]) == record["caption"]
    assert len(record["tokens"][0]) < len(record["caption"])
    with pytest.raises(
        UserError, match=r"holds the tokenizer 'sentencepiece:320' and PairData.tokenizer is 'sent.*:321'"
    ):
        opened("shapes", tmp_path / "data", **settings | {"tokenizer": "sentencepiece:321"})
    for damaged in ("", "[]", '{"tokeni'):
        [meta] = (tmp_path / "data").glob("*.json")
        meta.write_text(damaged)
        with pytest.raises(UserError, match=r"\.json is damaged: delete .*/data, which is then made again"):
            opened("shapes", tmp_path / "data", **settings)


def test_a_fraction_is_balanced_nested_and_of_the_seed(tmp_path):
    """Of a table, tar files and drawn scenes: of each class as large a share, the held-out pairs as they were."""
    labels = ["a"] * 5 + ["b"] * 15 + ["c"] * 40
    folder(tmp_path, {f"{i}.png": pixels(i) for i in range(60)})
    lines = [(f"{i}.png", f"caption {i}", label) for i, label in enumerate(labels)]
    source = table(tmp_path, ("image", "caption", "kind"), *lines)
    how = {"label": "kind", "valid": 0.1}
    whole = opened(source, **how)
    counts = np.bincount([whole.source()[i]["label"] for i in range(len(whole.source()))])
    chosen = {}
    for share, seed in ((0.2, 0), (0.6, 0), (0.2, 1), (0.01, 0)):
        prepared = opened(source, fraction=share, fraction_seed=seed, **how)
        train = prepared.source("train")
        found = [train[i] for i in range(len(train))]
        assert np.bincount([r["label"] for r in found]).tolist() == [max(1, round(share * n)) for n in counts]
        assert [train.captions(i) for i in range(len(train))] == [r["captions"] for r in found]
        assert f"{found[0]['caption'].split()[1]}.png" in train.name(0)
        chosen[share, seed] = {r["caption"] for r in found}
        assert len(prepared.source("valid")) == len(whole.source("valid"))
        assert prepared.fingerprint != whole.fingerprint and f"{len(found)} train" in prepared.described
    assert chosen[0.01, 0] < chosen[0.2, 0] < chosen[0.6, 0] and chosen[0.2, 0] != chosen[0.2, 1]
    with pytest.raises(UserError, match=r"PairData.fraction=2: a share of the training pairs lies in \(0, 1\]"):
        PairData(fraction=2)


@pytest.mark.parametrize("label", ["", "pair", "truth"])
def test_labels_of_drawn_pairs_are_known_without_drawing(label):
    source = PairData(shapes=Shapes(size=8, scenes=12, valid_scenes=2), label=label).build(progress=False).source()
    assert source.records.read_labels().tolist() == [source[i]["label"] for i in range(12)]


def test_fingerprints_change_with_what_is_read(tmp_path):
    path = plain(tmp_path)
    changes = ({}, {"channels": 1}, {"valid": 0.5}, {"text": ["{caption}!"]}, {"label": "caption"})
    found = [opened(path, **change).fingerprint for change in changes]
    assert len(set(found)) == len(found) and found[0] == opened(path).fingerprint
    prepared = opened(path, channels=1)
    assert records(prepared)[0]["image"].shape == (6, 9, 1)
    assert prepared.source("train").fingerprint != prepared.source("valid").fingerprint
    path.write_text(path.read_text().replace("caption 3", "caption three"))
    assert opened(path).fingerprint != found[0]
    with pytest.raises(UserError, match=r"has no test split, only train, valid$"):
        prepared.source("test")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"text": "caption"}, r"^PairData.text='caption': give a list, as in \['caption'\]$"),
        ({"text": []}, r"^PairData.text is empty"),
        ({"channels": 2}, r"^PairData.channels=2: choose 3"),
        ({"valid": 1.0}, r"^PairData.valid=1.0: the held-out share must lie in \(0, 1\)"),
        ({"max_pixels": 0}, r"^PairData.max_pixels=0: it must lie in 1"),
        ({"on_broken": "replac"}, r"^unknown PairData.on_broken 'replac': did you mean 'replace'\?"),
        ({"tokenizer": "byte"}, r"^tokenizer: 'byte' is neither .* did you mean 'bytes'\?"),
        ({"label": "pairs"}, r"^unknown label of shapes 'pairs': did you mean 'pair'\?"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        PairData(**settings).build(progress=False)


def test_data_workers_import_no_jax():
    code = "import multimodal.data, multimodal.preprocess, sys; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
