"""Tokenizers: one protocol (base.py) over bytes, SentencePiece, the `tokenizers` library, CLIP's and SigLIP's."""

import dataclasses
import difflib
import json
import pathlib
import re

from paradigm.errors import UserError
from paradigm.storage import expand
from t5like.tokenizers import subwords
from t5like.tokenizers.base import META, Tokenizer
from t5like.tokenizers.clip import ClipTokenizer, clip_tokenizer
from t5like.tokenizers.released import settings
from t5like.tokenizers.sentence_piece import SentencePieceTokenizer, is_t5_like, processor, train_sentencepiece
from t5like.tokenizers.siglip import SigLipTokenizer, siglip_tokenizer
from t5like.tokenizers.subwords import SubwordTokenizer, read_subwords, train_bpe, train_wordpiece
from t5like.tokenizers.utf8 import ByteTokenizer
from t5like.vocabulary import Vocabulary

__all__ = [
    "ByteTokenizer",
    "ClipTokenizer",
    "SentencePieceTokenizer",
    "SigLipTokenizer",
    "SubwordTokenizer",
    "Tokenizer",
    "beside",
    "clip_tokenizer",
    "get_tokenizer",
    "is_learnt",
    "load_tokenizer",
    "siglip_tokenizer",
    "train_bpe",
    "train_sentencepiece",
    "train_wordpiece",
    "vocabulary_of",
]

KINDS = {t.kind: t for t in (ByteTokenizer, SentencePieceTokenizer, SubwordTokenizer, ClipTokenizer, SigLipTokenizer)}
TRAINERS = {"sentencepiece": train_sentencepiece, "bpe": train_bpe, "wordpiece": train_wordpiece}
_FIRST = {  # the special ids of what each of them learns
    "sentencepiece": {"pad": 0, "eos": 1, "unk": 2},
    "bpe": {"pad": 0, "eos": 1},
    "wordpiece": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
}
SENTINELS = 100  # as many as T5 has
_SENTINEL = re.compile(r"<extra_id_(\d+)>$")
_OLD_META = "tokenizer.json"  # META's name before; the transformers library gives it to another file
_FAIRSEQ = "sentencepiece.bpe.model"  # of XLM-R and mBART, whose ids are not the model's: they begin with four others
_KNOWN = (
    f"{META} (saved here), tokenizer.json, a SentencePiece model (spiece.model, tokenizer.model, "
    "sentencepiece.model, *.model), vocab.json + merges.txt (byte-level BPE), merges.txt with </w> (CLIP), vocab.txt "
    "(WordPiece)"
)


def is_learnt(spec):
    """Whether a tokenizer of this name is learnt from text, as 'sentencepiece:8192' is."""
    name, _, size = str(spec).partition(":")
    return name in TRAINERS and size.isdigit()


def get_tokenizer(spec, texts=None, extra_ids=None, specials=()):
    """A tokenizer by name.

    Args:
        spec: "bytes"; "sentencepiece:8192", "bpe:8192" or "wordpiece:8192", learnt from `texts` to that many ids,
            sentinels included; or a file or directory: what `save` wrote, a run or prepared data with such a
            tokenizer/, a SentencePiece model, tokenizer.json, vocab.json + merges.txt, vocab.txt.
        texts: iterable of str, or a function returning one, for what is learnt.
        extra_ids: number of sentinels (a directory that `save` wrote knows its own). None: as many as a directory of
            the transformers library says, else 100, and none for the file of a tokenizer that is not like T5's.
        specials: names among mask, cls, sep, bos and eos, ids of which are added where it has none.

    Raises:
        UserError: for anything else, with the nearest of these.
    """
    if spec == "bytes":
        return ByteTokenizer(SENTINELS if extra_ids is None else extra_ids, specials)
    name, _, size = str(spec).partition(":")
    if is_learnt(spec):
        if texts is None:
            raise UserError(f"tokenizer: {spec} is learnt from text, and none was given; name a saved one instead")
        extra_ids = SENTINELS if extra_ids is None else extra_ids
        return TRAINERS[name](texts() if callable(texts) else texts, int(size), extra_ids, specials=specials)
    path = expand(spec)
    if path.exists():
        try:
            return _opened(path, extra_ids, specials)
        except UserError:
            raise
        except (ValueError, TypeError, AttributeError) as error:  # of text or JSON that is none
            raise UserError(f"tokenizer: what is in {path} is damaged ({error}): fetch it again") from error
    near = difflib.get_close_matches(name, ["bytes", *TRAINERS], 1)
    hint = {"bytes": "'bytes'", **{n: f"'{n}:8192'" for n in TRAINERS}}
    did = f"; did you mean {hint[near[0]]}?" if near else ""
    raise UserError(
        f"tokenizer: {spec!r} is neither 'bytes' nor 'sentencepiece:SIZE', 'bpe:SIZE' or 'wordpiece:SIZE' nor a file "
        f"or directory{did}"
    )


def vocabulary_of(spec, extra_ids=None, specials=()):
    """The Vocabulary of `get_tokenizer(spec)`, known before anything is learnt; None where nothing is at that path."""
    name, _, size = str(spec).partition(":")
    if is_learnt(spec):
        given = {n: int(size) - len(specials) + i for i, n in enumerate(specials)}
        top, extra_ids = int(size) - len(specials), SENTINELS if extra_ids is None else extra_ids
        sentinels = tuple(range(top - 1, top - extra_ids - 1, -1))
        return Vocabulary(int(size), **_FIRST[name] | given, sentinels=sentinels)
    if spec != "bytes" and ("/" in str(spec) or "." in str(spec)) and not expand(spec).exists():
        return None  # it may lie on another machine
    return get_tokenizer(spec, extra_ids=extra_ids, specials=specials).vocabulary


def load_tokenizer(path):
    """The tokenizer that `save` wrote into a directory, checked against its fingerprint."""
    directory = expand(path)
    name = META if (directory / META).exists() or not (directory / _OLD_META).exists() else _OLD_META
    try:
        meta = json.loads((directory / name).read_text())
        kind = KINDS.get(meta["kind"])
        if kind is None:
            raise UserError(f"tokenizer: {directory / name} is of kind {meta['kind']!r}; kinds: {', '.join(KINDS)}")
        known = {f.name for f in dataclasses.fields(kind)}
        tokenizer = kind.load(directory, **{k: v for k, v in meta.items() if k in known})
    except FileNotFoundError as error:
        raise UserError(f"tokenizer: {error.filename} is missing; {directory} should hold a saved tokenizer") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"tokenizer: {directory / name} is damaged ({error}); prepare the data again") from None
    if tokenizer.fingerprint != meta["fingerprint"]:
        raise UserError(
            f"tokenizer: {directory} does not hold the model that was saved there (fingerprint "
            f"{tokenizer.fingerprint}, expected {meta['fingerprint']}); prepare the data again"
        )
    return tokenizer


def beside(path, model_type):
    """The tokenizer in a directory of weights, or None. model_type: clip or siglip."""
    names, load = {
        "clip": (("merges.txt", "tokenizer.json"), clip_tokenizer),
        "siglip": (("spiece.model", "tokenizer.model"), siglip_tokenizer),
    }[model_type]
    there = [p for p in (pathlib.Path(path) / name for name in names) if p.is_file()]
    # A tokenizer.json may be of any tokenizer, as one of ours that was exported with a run.
    if [p.name for p in there] == ["tokenizer.json"] and b"<|startoftext|>" not in there[0].read_bytes():
        return None
    return load(path) if there else None


def _opened(path, extra_ids, specials):
    """The tokenizer in a file or a directory of any kind that is known."""
    if path.is_dir():
        if (path / META).exists() or _is_old_meta(path / _OLD_META):
            return load_tokenizer(path)
        if (path / "tokenizer" / META).exists():  # a run, or prepared data
            return load_tokenizer(path / "tokenizer")
        models = [path / n for n in ("spiece.model", "tokenizer.model", "sentencepiece.model")]
        models += sorted(p for p in path.glob("*.model") if p.name != _FAIRSEQ)
        files = [*models, path / subwords.FILE, path / "merges.txt", path / "vocab.txt", path / _FAIRSEQ]
        path = next((p for p in files if p.is_file()), path)
        if path.suffix == ".model":
            beside = settings(path.parent)
            if beside.kind == "SiglipTokenizer":
                return siglip_tokenizer(path)
            why, sentinels = _more_than(path, beside)
            if why:
                if not (path.parent / subwords.FILE).is_file():
                    beside.refuse(path.name, why)
                path = path.parent / subwords.FILE
            elif extra_ids is None:
                extra_ids = sentinels
        if path.is_dir():
            held = ", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing"
            raise UserError(f"tokenizer: {path} holds no tokenizer of a known kind; it holds {held}; kinds: {_KNOWN}")
    if path.name == "merges.txt" and "</w>" in path.read_text("utf-8"):
        return clip_tokenizer(path)
    if path.suffix in (".json", ".txt"):
        return read_subwords(path, extra_ids or 0, specials)
    model = _whole(path)
    if extra_ids is None:
        extra_ids = SENTINELS if is_t5_like(model) else 0
    return SentencePieceTokenizer(model, extra_ids, specials)


def _whole(path):
    """The bytes of a SentencePiece model. Raises UserError, which names the file, if they are none."""
    model = path.read_bytes()
    try:
        processor(model)
    except UserError as error:
        raise UserError(f"{error}: {path} is to be fetched again, or is of another kind; kinds: {_KNOWN}") from None
    return model


def _more_than(path, beside):
    """(why the ids of a directory are not those of its SentencePiece model and sentinels above it, None where they are;
    how many sentinels it says that there are, as UMT5's 300, None where it says nothing)."""
    if path.name == _FAIRSEQ or not beside.knows(".model"):
        return f"which are a {beside.kind or 'fairseq vocabulary'}'s", None
    added, size = {i: token["content"] for i, token in beside.added.items()}, processor(_whole(path)).piece_size()
    if (there := path.parent / subwords.FILE).is_file():
        added |= {t["id"]: t["content"] for t in json.loads(there.read_text("utf-8")).get("added_tokens") or ()}
    above = {i: text for i, text in added.items() if i >= size}
    firsts = [i + int(match[1]) for i, text in above.items() if (match := _SENTINEL.match(text))]  # of <extra_id_0>
    more = [i for i, text in above.items() if not _SENTINEL.match(text)] or [i for i in above if len(set(firsts)) > 1]
    if more:
        return f"as {above[more[0]]!r}, added to it as {more[0]}", None
    return None, firsts[0] + 1 - size if firsts else beside.entries.get("extra_ids")


def _is_old_meta(path):
    try:
        return "kind" in json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
