"""Tokenizers lose nothing, keep T5's id layout, survive pickling and saving, and say what is wrong with settings."""

import dataclasses
import hashlib
import io
import json
import pathlib
import pickle
import textwrap

import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from paradigm.errors import UserError
from t5like import tokenizers as tok
from t5like.labels import encode_words
from t5like.tokenizers import subwords

CORPUS = [pathlib.Path(m.__file__).read_text("utf-8") for m in (textwrap, tok)] + ["in 2024 " * 200]
HARD = [
    "",
    " ",
    "   a  b ",
    "\tdef f(x):\n\t    return 12345\n\n\n",
    "na\u00efve \U0001f642 \U0001f469\u200d\U0001f467 \u65e5\u672c\u8a9e e\u0301",
    "\u2581low\u2581\u2581bar \u2581",
    "nul\0 and \r\n, \u2028, \ufeff, \x1c",
    "</s><pad><unk> <0x41> <X> <extra_id_3>",
    "\U0010ffff",
]


@pytest.fixture(scope="module")
def pieces():
    return tok.train_sentencepiece(CORPUS, 640, extra_ids=20)


@pytest.fixture(params=["bytes", "sentencepiece"])
def tokenizer(request, pieces):
    return tok.ByteTokenizer(20) if request.param == "bytes" else pieces


def test_round_trip_and_byte_lengths(tokenizer):
    texts = HARD + CORPUS
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == text
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
        assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
        assert not len(ids) or (ids.min() >= 3 and ids.max() < tokenizer.vocab_size - tokenizer.extra_ids)


def test_layout(tokenizer, pieces):
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    assert tokenizer.sentinel(0) == tokenizer.vocab_size - 1 and tokenizer.sentinel(19) == tokenizer.vocab_size - 20
    assert tokenizer.byte_lengths.shape == (tokenizer.vocab_size,) and tokenizer.byte_lengths.dtype == np.float32
    assert not tokenizer.byte_lengths[:3].any() and not tokenizer.byte_lengths[-20:].any()
    assert pieces.vocab_size == 640
    assert pieces.specials_in("a<pad><X>b<extra_id_3><extra_id_20>") == ["<X>", "<extra_id_3>", "<pad>"]
    assert tok.ByteTokenizer().vocab_size == 359 and tok.ByteTokenizer().encode("A").tolist() == [68]
    with pytest.raises(UserError, match="there is no sentinel 20 among 20; raise extra_ids"):
        tokenizer.sentinel(20)


def test_pieces_suit_code(pieces):
    assert len(pieces.encode("\n\n\t")) == 3
    assert len(pieces.encode("        ")) < 8
    assert len(pieces.encode(" 2024")) >= 4
    assert sum(map(len, pieces.encode_batch(CORPUS))) < 0.6 * sum(map(len, CORPUS))


def test_decoding_what_no_text_encodes(tokenizer):
    a, b = tokenizer.encode("a").tolist(), tokenizer.encode("b").tolist()
    ids = [0, *a, tokenizer.sentinel(0), *b, tokenizer.sentinel(2), 2, tokenizer.sentinel(3), 1, 0, 0]
    assert tokenizer.decode(ids) == "a<X>b<Z>\ufffd<extra_id_3>"
    broken = 3 + 0xC3 if tokenizer.kind == "bytes" else tokenizer._processor.piece_to_id("<0xC3>")
    assert tokenizer.decode([broken]) == "\ufffd"
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(UserError, match="leave the vocabulary of"):
            tokenizer.decode([5, bad])


def test_prompt(tokenizer):
    ids = tokenizer.encode_prompt("The <X> sat on <extra_id_4> mat <Y>")
    assert [i for i in ids.tolist() if i > tokenizer.sentinel(19) - 1] == [tokenizer.sentinel(i) for i in (0, 4, 1)]
    assert tokenizer.decode(ids) == "The <X> sat on <extra_id_4> mat <Y>"
    assert tokenizer.decode(tokenizer.encode_prompt("none")) == "none"


def test_pickle_save_load(tokenizer, tmp_path):
    tokenizer.encode("builds the processor")
    text = CORPUS[0]
    place = tmp_path / "a" / "b"
    tokenizer.save(place)
    for other in (pickle.loads(pickle.dumps(tokenizer)), tok.load_tokenizer(place), tok.get_tokenizer(place)):
        np.testing.assert_array_equal(other.encode(text), tokenizer.encode(text))
        assert other.fingerprint == tokenizer.fingerprint and other == tokenizer


def test_training_is_deterministic(pieces):
    again = tok.train_sentencepiece(iter(CORPUS), 640, extra_ids=20)
    assert again.model == pieces.model
    assert pieces.fingerprint == f"sentencepiece:20:{hashlib.sha256(pieces.model).hexdigest()}"
    assert tok.train_sentencepiece(CORPUS, 640, extra_ids=20, max_bytes=1000).model != pieces.model
    assert tok.train_sentencepiece(CORPUS, 620, extra_ids=0).text_size == 620  # the same model, 20 ids differently used


def test_one_saved_under_its_old_name_is_read(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "paradigm_tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert tok.load_tokenizer(tmp_path) == tokenizer


def test_damage_is_named(pieces, tmp_path):
    pieces.save(tmp_path)
    tok.train_sentencepiece(CORPUS, 630, extra_ids=20).save(tmp_path / "other")
    (tmp_path / "sentencepiece.model").write_bytes((tmp_path / "other" / "sentencepiece.model").read_bytes())
    with pytest.raises(UserError, match="does not hold the model that was saved there"):
        tok.load_tokenizer(tmp_path)
    (tmp_path / "sentencepiece.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="these 11 bytes are not a SentencePiece model"):
        tok.load_tokenizer(tmp_path)
    (tmp_path / "sentencepiece.model").unlink()
    with pytest.raises(UserError, match="sentencepiece.model is missing"):
        tok.load_tokenizer(tmp_path)
    for damaged in (json.dumps({"kind": "bytes"}).encode(), b"\xff\xfe"):
        (tmp_path / "paradigm_tokenizer.json").write_bytes(damaged)
        with pytest.raises(UserError, match="paradigm_tokenizer.json is damaged"):
            tok.load_tokenizer(tmp_path)


def test_other_peoples_models(pieces, tmp_path):
    (tmp_path / "spiece.model").write_bytes(pieces.model)
    assert tok.get_tokenizer(tmp_path / "spiece.model", extra_ids=20) == pieces
    model = io.BytesIO()
    lines = CORPUS[0].splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=200, minloglevel=2
    )
    other = tok.SentencePieceTokenizer(model.getvalue(), 20, ("mask",))
    v = other.vocabulary
    assert (v.pad, v.bos, v.eos, v.unk, v.mask, v.size) == (None, 1, 2, 0, 220, 221) and v.sentinels[0] == 219
    assert (v.start, v.end, v.filler) == (1, 2, 0)
    assert v.text_ranges == ((3, 200),) and other.byte_lengths[[0, 1, 2, 219, 220]].sum() == 0
    ids = other.encode_prompt("def f <X> return")
    assert other.decode([1, *ids, 2, 220]) == "def f<X> return<mask>"
    # As transformers' T5Tokenizer has it: the space before a sentinel is lost, each run of text after one has its own.
    ids = other.encode_prompt("<X>def f <Y>, return<Z><extra_id_3>x \n\t y")
    assert other.decode(ids) == "<X> def f<Y> , return<Z><extra_id_3> x y"


def test_sentinels_that_a_model_has_itself(pieces, tmp_path):
    """mT5's are pieces, a space before each, the first one last: no others stand above them, and none spells text."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(pieces.model)
    for i in (2, 1, 0):
        proto.pieces.add(piece=f"\u2581<extra_id_{i}>", score=0.0, type=4)
    (tmp_path / "spiece.model").write_bytes(proto.SerializeToString())
    found, size = tok.get_tokenizer(tmp_path), pieces.text_size + 3
    v = found.vocabulary
    assert (v.size, v.sentinels) == (size, (size - 1, size - 2, size - 3))
    assert not v.is_text(np.array(v.sentinels)).any() and not found.byte_lengths[[*v.sentinels]].any()
    assert found.decode(found.encode_prompt("a<X> b")) == "a<X> b"


def test_what_stands_behind_a_text_is_read_as_with_it():
    """Llama's model puts a space before every text, and keeps those that are there: " cat" alone begins with two."""
    model, lines = io.BytesIO(), ["the cat sat on the mat"] * 9
    kept = dict(remove_extra_whitespaces=False, normalization_rule_name="identity", byte_fallback=True)
    how = dict(model_type="bpe", vocab_size=280, minloglevel=2, **kept)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **how)
    llama = tok.SentencePieceTokenizer(model.getvalue(), 4)
    assert len(llama.encode(" sat")) == 1 + len(llama.encode("sat"))
    for text in (" sat on", "s", "", "\n mat"):
        [behind] = llama.encode_behind([text])
        assert [*llama.encode("the cat"), *behind] == llama.encode("the cat" + text).tolist()
    assert encode_words(llama, ["the", "cat", "sat"])[0].tolist() == llama.encode("the cat sat").tolist()
    x = llama.sentinel(0)
    assert llama.encode_prompt("the cat<X> sat").tolist() == [*llama.encode("the cat"), x, *llama.encode("sat")]
    for other in (tok.ByteTokenizer(), tok.train_bpe(CORPUS, 400, extra_ids=0)):
        assert other.encode_behind([" a"])[0].tolist() == other.encode(" a").tolist()


def test_fairseq_numbers_pieces_in_its_own_way(pieces, tmp_path):
    """mBART's and XLM-R's directories hold a SentencePiece model whose ids are not those of their weights."""
    (tmp_path / "sentencepiece.bpe.model").write_bytes(pieces.model)
    with pytest.raises(UserError, match="sentencepiece.bpe.model does not say the ids that the weights beside it"):
        tok.get_tokenizer(tmp_path)
    assert tok.get_tokenizer(tmp_path / "sentencepiece.bpe.model", extra_ids=20) == pieces
    learnt = tok.train_bpe(CORPUS, 400, extra_ids=0)
    (tmp_path / "tokenizer.json").write_bytes(learnt.content)
    assert tok.get_tokenizer(tmp_path).content == learnt.content


def test_a_sentencepiece_model_to_which_tokens_were_added(pieces, tmp_path):
    """The library keeps those beside the model: its tokenizer.json is then read, or the model alone is not."""
    (tmp_path / "spiece.model").write_bytes(pieces.model)
    model = lambda: tok.get_tokenizer(tmp_path, extra_ids=20)
    settings = lambda **entries: (tmp_path / "tokenizer_config.json").write_text(json.dumps(entries))
    sentinel = {str(pieces.text_size): {"content": "<extra_id_19>", "special": True}}
    settings(tokenizer_class="T5Tokenizer", added_tokens_decoder=sentinel)
    assert model() == pieces
    model = lambda: tok.get_tokenizer(tmp_path)  # as many as it says: UMT5 has 300
    assert model() == pieces
    settings(tokenizer_class="T5Tokenizer", extra_ids=20)
    assert model() == pieces
    ascending = {str(pieces.text_size + i): {"content": f"<extra_id_{i}>"} for i in range(2)}
    for entries, why in (
        ({"added_tokens_decoder": ascending}, f"as '<extra_id_0>', added to it as {pieces.text_size}"),
        ({"added_tokens_decoder": {"650": {"content": "{", "special": False}}}, "as '{', added to it as 650"),
        ({"tokenizer_class": "PegasusTokenizer"}, "which are a PegasusTokenizer's"),  # whose ids are 103 higher
    ):
        settings(**entries)
        with pytest.raises(UserError, match=f"spiece.model does not say the ids .*, {why}: .* or name the file itself"):
            model()
        assert tok.get_tokenizer(tmp_path / "spiece.model", extra_ids=20) == pieces
    settings(tokenizer_class="SiglipTokenizer")
    assert isinstance(model(), tok.SigLipTokenizer)
    settings(tokenizer_class="T5TokenizerFast")
    learnt = json.loads(tok.train_bpe(CORPUS, 400, extra_ids=0).content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(learnt))
    assert model() == dataclasses.replace(pieces, extra_ids=100)
    learnt["added_tokens"].append({**learnt["added_tokens"][-1], "id": 640, "content": "{}"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(learnt))
    assert model().kind == "subwords"


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("fallback", [False, True])
def test_the_sign_for_a_space_in_a_text(keeps, fallback):
    """U+2581 is what SentencePiece reads as a space; bytes of its own where spaces and bytes are kept apart."""
    how = (
        dict(normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False)
        if keeps
        else {}
    )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS[0].splitlines()), model_writer=model, vocab_size=420, hard_vocab_limit=False,
        byte_fallback=fallback, minloglevel=2, **how,
    )  # fmt: skip
    ours = tok.SentencePieceTokenizer(model.getvalue(), 20)
    for text in ("f\u2581g", "\u2581", "f \u2581 \u2581\u2581g"):
        if keeps and fallback:
            assert ours.decode(ours.encode(text)) == text
        else:
            theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode(text)
            assert ours.encode(text).tolist() == theirs and ours.vocabulary.unk not in theirs


@pytest.mark.parametrize(
    "size, message",
    [
        (300, "300 is too small: 100 sentinels, 3 specials, newline, tab and 256 bytes take 361 ids"),
        (370, "the characters of this text need a vocabulary of at least"),
        (90_000, "this text supports a vocabulary of at most"),
    ],
)
def test_vocabulary_sizes_that_cannot_be(size, message):
    with pytest.raises(UserError, match=message):
        tok.train_sentencepiece(CORPUS, size)


def test_names(pieces):
    assert tok.get_tokenizer("bytes") == tok.ByteTokenizer(100)
    assert tok.get_tokenizer("sentencepiece:640", texts=lambda: CORPUS, extra_ids=20) == pieces
    with pytest.raises(UserError, match="did you mean 'sentencepiece:8192'"):
        tok.get_tokenizer("sentencpiece:640", texts=CORPUS)
    with pytest.raises(UserError, match="did you mean 'bytes'"):
        tok.get_tokenizer("byte")
    with pytest.raises(UserError, match="learnt from text, and none was given"):
        tok.get_tokenizer("sentencepiece:640")
    with pytest.raises(UserError, match="there is no text to learn"):
        tok.get_tokenizer("sentencepiece:640", texts=["", "\n"])


def test_where_words_begin():
    """The space before a word is its beginning; a continuation is none."""
    text = "hello hello world\nworlds " * 40
    for made in (
        tok.ByteTokenizer(),
        tok.train_sentencepiece([text], 271, extra_ids=0),
        subwords.train_bpe([text], 268, extra_ids=0),
        subwords.train_wordpiece([text], 24, extra_ids=0),
    ):
        ids = made.encode("hello world\nworlds")
        starts = made.word_starts[ids]
        starts[0] = True
        words = [made.decode(part).strip() for part in np.split(ids, np.flatnonzero(starts)[1:])]
        assert [w for w in words if w] == ["hello", "world", "worlds"], made.kind


def test_words_of_scripts_without_spaces():
    """Each piece of such a text is a word; in others a piece within a word is none."""
    text = "東京は大きい都市です。 абвг абвгд\n" * 40
    for made in (tok.train_sentencepiece([text], 280, extra_ids=0), subwords.train_bpe([text], 294, extra_ids=0)):
        starts = {made._decode_text([i], False).strip(): bool(made.word_starts[i]) for i in made.encode(text).tolist()}
        assert all(starts[piece] for piece in starts if piece[:1] in tuple("東京は大きい都市です")), made.kind
        assert not any(starts[piece] for piece in starts if piece[:1] in tuple("бвгд")), made.kind
        assert made.sentence_ends[made.encode(text)].sum() == 80, made.kind  # full stops and line breaks
