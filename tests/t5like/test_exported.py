"""Our tokenizers as the tokenizers library reads them: the very ids, sentinels included."""

import io
import json
import pathlib
import textwrap

import pytest
import sentencepiece

from paradigm.errors import UserError
from t5like import exported
from t5like import tokenizers as tok

CORPUS = [pathlib.Path(m.__file__).read_text("utf-8") for m in (textwrap, json.decoder)] + ["in 2024 " * 200]
TEXTS = [
    "",
    " ",
    "   a  b ",
    "\tdef f(x):\n\t    return 12345\n\n\n",
    "na\u00efve \U0001f642 \u65e5\u672c\u8a9e e\u0301",
    "nul\0 and \r\n, \u2028, \ufeff",
    "<0x41> <X> \U0010ffff",
    CORPUS[0],
]


def learnt(**how):
    model = io.BytesIO()
    lines = iter("\n".join(CORPUS).split("\n"))
    ids = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, vocab_size=500, **ids, **how)
    return tok.SentencePieceTokenizer(model.getvalue())


TOKENIZERS = {
    "bytes": tok.ByteTokenizer,
    "ours": lambda: tok.train_sentencepiece(CORPUS, 800),
    "a user's": learnt,  # normalised, with a space in front
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_files_hold_our_ids(name, tmp_path):
    tokenizer = TOKENIZERS[name]()
    remarks = exported.write(tmp_path, tokenizer)
    assert bool(remarks) == (name != "bytes")
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    assert [added[f"<extra_id_{i}>"] for i in range(100)] == [tokenizer.sentinel(i) for i in range(100)]
    assert [added[x] for x in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    # The library numbers what is not in the model's own vocabulary as it comes.
    assert sorted(added.values())[3:] == list(range(tokenizer.text_size, tokenizer.vocab_size))
    assert len(content["model"]["vocab"]) == tokenizer.text_size
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert (config["pad_token"], config["eos_token"], config["unk_token"]) == ("<pad>", "</s>", "<unk>")


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("ends", [False, True])
def test_the_library_gives_our_ids(name, ends, tmp_path):
    library = pytest.importorskip("tokenizers")
    tokenizer = TOKENIZERS[name]()
    exported.write(tmp_path, tokenizer, ends)
    theirs = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    end = [tokenizer.eos_id] * ends
    for text in TEXTS:
        assert theirs.encode(text).ids == [*tokenizer.encode(text).tolist(), *end], text
    prompt = "The <extra_id_0> sat on<extra_id_99> mat"
    assert theirs.encode(prompt).ids == [*tokenizer.encode_prompt(prompt).tolist(), *end]
    if name != "a user's":
        assert [theirs.decode(theirs.encode(text).ids) for text in TEXTS] == TEXTS


def test_what_their_files_cannot_say(tmp_path):
    with pytest.raises(UserError, match="not a unigram one: the transformers library's files cannot be written"):
        exported.write(tmp_path, learnt(model_type="bpe"))
    with pytest.raises(UserError, match="cannot be written for a Other"):
        exported.write(tmp_path, type("Other", (), {})())
    assert not list(tmp_path.iterdir())
