"""Byte-level BPE, WordPiece and released SentencePiece models: as the transformers library encodes awkward text."""

import json
import pickle

import numpy as np
import pytest
import sentencepiece

from paradigm.errors import UserError
from t5like import tokenizers as tok
from tests.t5like import tokenizer_parity as parity
from tests.t5like.test_tokenizer import CORPUS

GOLDEN = json.loads(parity.GOLDEN.read_text("utf-8"))
LEARNT = {"bpe": "bpe:500", "wordpiece": "wordpiece:400"}


@pytest.fixture(params=LEARNT)
def learnt(request):
    return request.param, tok.get_tokenizer(LEARNT[request.param], CORPUS, extra_ids=20, specials=("bos",))


@pytest.mark.parametrize("name", GOLDEN["ids"])
def test_ids_are_those_of_the_transformers_library(name, tmp_path):
    """From the files that the library was given when it made the goldens, and from its own tokenizer.json."""
    parity.write_files(name, GOLDEN, tmp_path)
    tokenizer = tok.get_tokenizer(tmp_path, extra_ids=0)
    for text, ids in zip(GOLDEN["texts"], GOLDEN["ids"][name], strict=True):
        assert tokenizer.encode(text).tolist() == ids, repr(text)
    assert {r: getattr(tokenizer.vocabulary, r) for r in GOLDEN["roles"][name]} == GOLDEN["roles"][name]


def test_the_texts_are_awkward():
    texts = GOLDEN["texts"]
    assert "" in texts and any("\t" in t for t in texts) and any("\n" in t for t in texts)
    assert any(t.startswith("  ") for t in texts) and any("\u0301" in t for t in texts)
    assert any("\u65e5" in t for t in texts) and any(ord(c) > 0xFFFF for t in texts for c in t)


def test_how_text_is_split_is_read_beside_a_vocabulary(tmp_path):
    """As the transformers library's BertTokenizer and GPT2Tokenizer take it from tokenizer_config.json."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "e", "\u00e9", "\u65e5", "\u672c", "\u65e5\u672c"]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(pieces))
    read = lambda name, **config: (
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(config)),
        tok.get_tokenizer(tmp_path / name),
    )[1]
    ids = lambda **config: read("bert", do_lower_case=True, **config).encode("\u00c9 \u65e5\u672c").tolist()
    assert ids() == [5, 7, 8]
    assert ids(strip_accents=False) == [6, 7, 8]
    assert ids(tokenize_chinese_chars=False) == [5, 9]
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "vocab.json").write_text(json.dumps({"a": 0, "\u0120": 1, "\u0120a": 2}))
    (tmp_path / "gpt2" / "merges.txt").write_text("#version: 0.2\n\u0120 a\n")
    assert read("gpt2").encode("a a").tolist() == [0, 2]
    assert read("gpt2", add_prefix_space=True).encode("a a").tolist() == [2, 2]


def test_learnt_ones_have_their_layout(learnt):
    name, tokenizer = learnt
    v = tokenizer.vocabulary
    assert v.size == int(LEARNT[name].partition(":")[2]) and len(v.sentinels) == 20
    assert v.bos == v.size - 1 and v.sentinels[0] == v.size - 2 and v.sentinels[-1] == v.size - 21
    if name == "bpe":
        assert (v.pad, v.eos, v.unk, v.end) == (0, 1, None, 1)
    else:
        assert (v.pad, v.unk, v.cls, v.sep, v.mask, v.end) == (0, 1, 2, 3, 4, 3)
    known = tok.vocabulary_of(LEARNT[name], 20, ("bos",))
    assert known.fingerprint == "" and {**vars(known), "fingerprint": 0} == {
        **vars(v),
        "fingerprint": 0,
        **drop(known, v),
    }


def drop(*vocabularies):
    """What cached properties leave in `vars`."""
    return {k: None for v in vocabularies for k in vars(v) if k == "text_ranges"}


def test_bpe_loses_nothing_and_counts_its_bytes():
    tokenizer = tok.get_tokenizer("bpe:500", CORPUS)
    for text in (*GOLDEN["texts"], *CORPUS):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
        assert tokenizer.vocabulary.is_text(ids).all()
    prompt = tokenizer.encode_prompt("The <X> sat</s>")
    assert tokenizer.decode(prompt) == "The <X> sat</s>" and tokenizer.vocabulary.eos not in prompt


def test_wordpiece_counts_the_bytes_of_its_pieces():
    tokenizer = tok.get_tokenizer("wordpiece:400", CORPUS)
    ids = tokenizer.encode("import string\n")
    assert tokenizer.decode(ids) == "import string"
    assert tokenizer.byte_lengths[ids].sum() == len("importstring")
    assert tokenizer.encode("Import").tolist() == tokenizer.encode("import").tolist()


def test_saved_pickled_and_learnt_again_they_are_the_same(learnt, tmp_path):
    name, tokenizer = learnt
    tokenizer.save(tmp_path)
    again = tok.get_tokenizer(LEARNT[name], CORPUS, extra_ids=20, specials=("bos",))
    for other in (
        tok.load_tokenizer(tmp_path),
        tok.get_tokenizer(tmp_path),
        pickle.loads(pickle.dumps(tokenizer)),
        again,
    ):
        assert other == tokenizer and other.fingerprint == tokenizer.fingerprint
        np.testing.assert_array_equal(other.encode(CORPUS[0]), tokenizer.encode(CORPUS[0]))


def test_what_cannot_be(tmp_path):
    with pytest.raises(
        UserError, match="holds no tokenizer of a known kind; it holds config.json; kinds: paradigm_tok"
    ):
        (tmp_path / "config.json").write_text("{}")
        tok.get_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Strange"}}')
    with pytest.raises(UserError, match="tokenizer.json cannot be read by the tokenizers library"):
        tok.get_tokenizer(tmp_path)
    with pytest.raises(UserError, match="a vocabulary of 300 is too small: 100 sentinels and specials above 258 ids"):
        tok.get_tokenizer("bpe:300", CORPUS)
    with pytest.raises(UserError, match=r"supports a vocabulary of at most (\d+), .* as in 'bpe:\1'"):
        tok.get_tokenizer("bpe:5000", ["a b"], extra_ids=0)
    with pytest.raises(UserError, match="there is no text to learn a vocabulary from"):
        tok.get_tokenizer("bpe:5000", [""])
    with pytest.raises(UserError, match="it has a mask id of its own"):
        _ = tok.get_tokenizer("wordpiece:400", CORPUS, specials=("mask",)).vocabulary
    tok.ByteTokenizer().save(tmp_path / "bytes")
    meta = tmp_path / "bytes" / "paradigm_tokenizer.json"
    meta.write_text(meta.read_text().replace('"bytes"', '"runes"'))
    with pytest.raises(UserError, match="is of kind 'runes'; kinds: bytes, sentencepiece, subwords, clip, siglip"):
        tok.load_tokenizer(tmp_path / "bytes")
    assert sentencepiece
