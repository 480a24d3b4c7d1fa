"""CLIP's pairs of bytes as the transformers library encodes them, SigLIP's pieces, and what is no tokenizer."""

import gzip
import io
import json
import pickle

import jax
import numpy as np
import pytest
import sentencepiece

from multimodal import hf
from multimodal.towers import clip_text, siglip_text
from paradigm.errors import UserError
from t5like.tokenizers import (
    ClipTokenizer,
    SigLipTokenizer,
    beside,
    clip_tokenizer,
    siglip_tokenizer,
    train_sentencepiece,
)
from tests.multimodal import tiny
from tests.parity import make
from tests.parity import pairs_cases as cases

GOLDEN = json.loads((cases.HERE / "clip_tokenizer.json").read_text())  # CLIPTokenizer 5.23 on these merges
MERGES = "\n".join(GOLDEN["merges"]).encode()


@pytest.fixture(scope="module")
def clip():
    return ClipTokenizer(MERGES)


@pytest.fixture(scope="module")
def siglip():
    return SigLipTokenizer(train_sentencepiece(["a small red circle and a blue star"] * 50, 275, 0).model)


@pytest.mark.parametrize("text,ids,decoded", GOLDEN["cases"])
def test_clip_encodes_as_the_library(clip, text, ids, decoded):
    ours = clip.encode(text)
    assert ours.dtype == np.int32 and [clip.bos_id, *ours.tolist(), clip.eos_id] == ids
    assert clip.decode(ids) == decoded


def test_both_can_be_pickled(clip, siglip):
    for tokenizer in (clip, siglip):
        tokenizer.encode("a red star")
        again = pickle.loads(pickle.dumps(tokenizer))
        assert again == tokenizer and hash(again) == hash(tokenizer) and again.fingerprint == tokenizer.fingerprint
        np.testing.assert_array_equal(again.encode("a red star"), tokenizer.encode("a red star"))


def test_clip_from_any_of_its_files(clip, tmp_path):
    clip.save(tmp_path)
    assert clip_tokenizer(tmp_path) == clip and json.loads((tmp_path / "vocab.json").read_text())["!</w>"] == 256
    (tmp_path / "merges.txt").write_bytes(MERGES)
    assert clip_tokenizer(tmp_path) == clip
    (tmp_path / "merges.txt").unlink()
    for form in (GOLDEN["merges"], [m.split(" ") for m in GOLDEN["merges"]]):
        (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"merges": form}}))
        assert clip_tokenizer(tmp_path) == clip
    (tmp_path / "bpe.txt.gz").write_bytes(gzip.compress(b'"bpe_simple_vocab_16e6.txt#version: 0.2\n' + MERGES + b"\n"))
    assert clip_tokenizer(tmp_path / "bpe.txt.gz") == clip


def test_siglip_leaves_case_and_punctuation(siglip, tmp_path):
    plain = siglip.encode("a small red circle and a blue star")
    np.testing.assert_array_equal(siglip.encode(" A small, RED circle\tand a 'blue' star! "), plain)
    assert siglip.decode([*plain, 1, 1]) == "a small red circle and a blue star"
    siglip.save(tmp_path)
    assert siglip_tokenizer(tmp_path) == siglip == siglip_tokenizer(tmp_path / "spiece.model")


def test_weights_bring_the_tokenizer_that_lies_beside_them(clip, tmp_path):
    """An end id of 2 in an old file means the tokenizer's own, the highest."""
    golden = cases.load("clip_old")
    side = golden["config"]["text_config"] | {"vocab_size": clip.vocab_size}
    golden["config"] = golden["config"] | {"text_config": side}
    name = "text_model.embeddings.token_embedding.weight"
    golden["weights"] = golden["weights"] | {name: cases.weight(name, (clip.vocab_size, 12))}
    path = make.released(golden, tmp_path)
    clip.save(path)
    objective, _ = hf.read_objective(path)
    assert objective.tokenizer == clip and objective.text.end_id == clip.eos_id
    row = objective.tokenize(["a photo of a cat and a dog and a house"])[0]
    assert row[0] == clip.bos_id and row[-1] == clip.eos_id and len(row) == 7
    short = objective.tokenize(["a"])[0]
    assert short.tolist() == [clip.bos_id, *clip.encode("a"), *[clip.eos_id] * 5]
    assert hf.FAMILIES[0].config(hf.read(path)[0])["text_config"]["eos_token_id"] == 2  # written as it was read


def test_weights_take_their_own_tokenizer_along(clip, siglip, tmp_path):
    objectives = {
        "clip": tiny.clip(text=clip_text("tiny", clip.vocab_size, 8, end_id=clip.eos_id, **tiny.TOWER), tokenizer=clip),
        "siglip": tiny.siglip(text=siglip_text("tiny", 300, 8, **tiny.TOWER), tokenizer=siglip),
    }
    for name, objective in objectives.items():
        params = jax.jit(objective.init)(jax.random.key(0))
        hf.write_objective(tmp_path / name, objective, params)
        assert hf.read_objective(tmp_path / name)[0].tokenizer == objective.tokenizer
        for left in ("config.json", "model.safetensors", "preprocessor_config.json"):
            (tmp_path / name / left).unlink()
        with pytest.raises(UserError, match="holds a tokenizer and it is not written over"):
            hf.write_objective(tmp_path / name, objective, params)
    hf.write_objective(tmp_path / "bytes", tiny.clip(), jax.jit(tiny.clip().init)(jax.random.key(0)))
    assert len(list((tmp_path / "bytes").iterdir())) == 3


def test_what_is_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="holds no merges of CLIP"):
        clip_tokenizer(tmp_path)
    with pytest.raises(UserError, match="holds no SentencePiece model"):
        siglip_tokenizer(tmp_path)
    with pytest.raises(UserError, match="'a b c' is no merge of two pieces"):
        ClipTokenizer(b"a b c").encode("a")
    with pytest.raises(UserError, match="these 3 bytes are not a SentencePiece model"):
        SigLipTokenizer(b"abc").encode("a")
    other = io.BytesIO()
    texts = iter(["a small red circle and a blue star"] * 50)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_writer=other, vocab_size=30, minloglevel=2, hard_vocab_limit=False
    )
    with pytest.raises(UserError, match="SigLIP's SentencePiece models end with 1; this one with 2"):
        SigLipTokenizer(other.getvalue()).encode("a")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="holds no merges of CLIP"):
        clip_tokenizer(tmp_path)
    assert beside(tmp_path, "siglip") is None
