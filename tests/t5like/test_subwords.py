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


def test_tokens_that_were_added_are_read_beside_a_vocabulary(tmp_path):
    """Where older directories say them, added_tokens.json, and where later ones do; a text spells no special one."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\ncovid\n##19\n")
    ids = lambda text: tok.get_tokenizer(tmp_path).encode(text).tolist()
    assert ids("covid19 <e>") == [4, 5, 1, 1, 1]
    (tmp_path / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<e>"]}')
    (tmp_path / "added_tokens.json").write_text('{"<e>": 7, "covid19": 6}')
    assert ids("Covid19 <e>") == [6, 1, 1, 1] and tok.get_tokenizer(tmp_path).vocab_size == 8
    assert tok.get_tokenizer(tmp_path).specials_in("{text} <e>[SEP] covid19") == ["<e>", "[SEP]"]
    added = {"6": {"content": "cov", "special": False}, "7": {"content": "[E]", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added, "pad_token": "[E]"}))
    assert ids("covid19") == [6, 1] and tok.get_tokenizer(tmp_path).vocabulary.pad == 7
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"9": added["6"]}}))
    with pytest.raises(UserError, match="vocab.txt does not say the ids .* as 'cov', added to it as 9: have the"):
        ids("")
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": [1]}')
    with pytest.raises(UserError, match="the settings in .* are damaged"):
        ids("")


def test_a_vocabulary_of_another_class_is_refused(tmp_path):
    """Qwen2's files are called as GPT-2's and its words are others."""
    (tmp_path / "vocab.json").write_text(json.dumps({"<s>": 0, "</s>": 1, "a": 2}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    of = lambda kind: (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    of("Qwen2TokenizerFast")
    with pytest.raises(
        UserError, match="merges.txt does not say the ids .*, which are a Qwen2Tokenizer's: have the tr"
    ):
        tok.get_tokenizer(tmp_path)
    of("RobertaTokenizerFast")  # which frames a text without a word in its settings
    v = tok.get_tokenizer(tmp_path).vocabulary
    assert (v.cls, v.sep) == (0, 1)


def test_what_stands_around_a_text_is_read_in_its_tokenizer_json(tmp_path):
    """roberta-base and xlm-roberta-base say it nowhere else: their <s> is cls, their </s> is sep."""
    library = {"version": "1.0", "model": {"type": "BPE", "vocab": {"<s>": 0, "</s>": 1, "a": 2}, "merges": []}}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [{"id": i, "content": x, "special": True, **flags} for i, x in enumerate(("<s>", "</s>"))]
    roberta = {"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0], "trim_offsets": True}
    roberta["add_prefix_space"] = False
    token = lambda i: {"SpecialToken": {"id": special[i]["content"], "type_id": 0}}
    named = {x["content"]: {"id": x["content"], "ids": [x["id"]], "tokens": [x["content"]]} for x in special}
    template = {"type": "TemplateProcessing", "pair": [], "special_tokens": named}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    frame = {**template, "single": [token(0), text, token(1)]}
    other = {"Sequence": {"id": "B", "type_id": 0}}
    one, two = ({**frame, "pair": [token(0), text, *[token(1)] * n, other, token(1)]} for n in (1, 2))
    t5 = {**template, "single": [text, token(1)]}
    none = (None, None, 1)
    said = ((roberta, (0, 1, 2)), (frame, (0, 1, 2)), (one, (0, 1, 1)), (two, (0, 1, 2)), (t5, none), (None, none))
    for processor, framed in said:
        whole = {**library, "added_tokens": special, "post_processor": processor}
        (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
        v = tok.get_tokenizer(tmp_path).vocabulary
        assert (v.cls, v.sep, v.seps) == framed and (v.bos, v.eos) == (0, 1)


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


@pytest.mark.parametrize("files, message", [
    ({"spiece.model": b""}, r"these 0 bytes are not a SentencePiece model: \S+/spiece.model is to be fetched again"),
    ({"spiece.model": b"version https://git-lfs"}, r"these 23 bytes are not .*/spiece.model is to be fetched again"),
    ({"spiece.model": None, "tokenizer.json": b'{"version": "1'}, "is damaged .*: fetch it again"),
    ({"spiece.model": None, "tokenizer.json": b"[]"}, "is damaged .*: fetch it again"),
    ({"merges.txt": b"\xff\xfe", "vocab.json": b"{}"}, "is damaged .*: fetch it again"),
    ({"tokenizer.json": b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}'}, "tokenizer.json holds no pieces"),
    ({"vocab.txt": b""}, "vocab.txt is no whole vocabulary of WordPiece, it lacks .UNK.: fetch it again"),
    ({"vocab.txt": b"the\ncat\n"}, "vocab.txt is no whole vocabulary of WordPiece"),
])  # fmt: skip
def test_files_that_did_not_arrive_whole_are_named(files, message, tmp_path):
    for name, content in files.items():
        if content is None:
            content = tok.get_tokenizer("sentencepiece:400", CORPUS, extra_ids=0).model
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        tok.get_tokenizer(tmp_path)


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
