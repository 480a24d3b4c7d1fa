"""Byte-level BPE, WordPiece and whatever else the `tokenizers` library runs: read from its files, or learnt here.

tokenizer.json              any model of that library, as GPT-2's, Llama's and BERT's come with
vocab.json + merges.txt     byte-level BPE (Radford et al. 2019, section 2.2)
vocab.txt                   WordPiece (Devlin et al. 2019, section 3)
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re

from paradigm.errors import UserError
from paradigm.storage import expand
from t5like.tokenizers.base import Tokenizer, checked_specials, sentinels_among
from t5like.tokenizers.released import settings

FILE = "tokenizer.json"
_ROLES = ("pad", "bos", "eos", "unk", "mask", "cls", "sep")
_SPELLED = {  # special tokens that say by their names what they are, where no configuration does
    "pad": ("<pad>", "[PAD]", "<|padding|>"),
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "unk": ("<unk>", "[UNK]"),
    "mask": ("<mask>", "[MASK]"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
}
_SPACE = "\u2581"
_LONG = re.compile(r"(\S{10000})(?=\S)")  # the library takes the square of a word's length, as of a genome's, to learn


@dataclasses.dataclass(frozen=True)
class SubwordTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library, and sentinels above it.

    content: its tokenizer.json. roles: ((pad, bos, eos, unk, mask, cls or sep, its id), ...), those that it has.
    extra_ids: sentinels added above it. specials: names of ids added above those.

    Byte-level BPE loses nothing of a text. WordPiece loses case where it is told to, accents with it, and all space.
    """

    content: bytes = dataclasses.field(repr=False)
    roles: tuple = ()
    extra_ids: int = 100
    specials: tuple[str, ...] = ()
    kind = "subwords"

    def __post_init__(self):
        object.__setattr__(self, "specials", checked_specials(self.specials))
        object.__setattr__(self, "roles", tuple((name, int(i)) for name, i in self.roles))

    def __getstate__(self):
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def __setstate__(self, state):
        self.__dict__.update(state)

    @functools.cached_property
    def _tokenizer(self):
        from tokenizers import Tokenizer as Library

        try:
            found = Library.from_str(self.content.decode("utf-8"))
        except Exception as error:  # the library raises bare exceptions
            raise UserError(f"tokenizer: the tokenizers library cannot read this {FILE} ({error})") from None
        found.no_truncation()
        found.no_padding()
        found.encode_special_tokens = True  # what a text spells is text
        return found

    @functools.cached_property
    def _json(self):
        return json.loads(self.content)

    @functools.cached_property
    def own(self):
        return dict(self.roles)

    @functools.cached_property
    def _pieces(self):
        """id -> piece."""
        return {i: piece for piece, i in self._tokenizer.get_vocab(with_added_tokens=True).items()}

    @functools.cached_property
    def text_size(self):
        return max(self._pieces) + 1

    @functools.cached_property
    def silent(self):
        """Special tokens without a role here, and numbers that no piece has."""
        special = {t["id"] for t in self._json.get("added_tokens") or () if t.get("special")}
        gaps = set(range(self.text_size)) - set(self._pieces)
        return tuple(sorted((special | gaps) - {*self.own.values(), *self.own_sentinels}))

    @functools.cached_property
    def seps(self):
        """How many sep stand between two texts: as its file says, or two where texts are framed by <s> and </s>."""
        sep = self._pieces.get(self.own.get("sep"))
        pair = (self._json.get("post_processor") or {}).get("pair") or []
        ids = [part["SpecialToken"]["id"] if "SpecialToken" in part else None for part in pair]
        if ids.count(None) == 2:  # a template
            first, second = (n for n, x in enumerate(ids) if x is None)
            return max(ids[first:second].count(sep), 1)
        return 2 if sep == "</s>" else 1

    @functools.cached_property
    def own_sentinels(self):
        return sentinels_among({piece: i for i, piece in self._pieces.items()}.get)

    @functools.cached_property
    def fingerprint(self):
        roles = " ".join(f"{name}={i}" for name, i in self.roles)
        return f"subwords:{self._beside}:{hashlib.sha256(self.content + roles.encode()).hexdigest()}"

    def _encode_texts(self, texts):
        return [found.ids for found in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def _decode_text(self, ids, first=True):
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        if first or not ids:
            return text
        piece = self._pieces.get(ids[0], "")
        begins = not piece.startswith("##") if self._model == "WordPiece" else piece.startswith(_SPACE)
        return f" {text}" if begins and not text.startswith(" ") else text

    def _special_pieces(self):
        return [piece for i, piece in self._pieces.items() if not self.vocabulary.is_text(i)]

    @property
    def _model(self):
        return self._json["model"].get("type")

    @property
    def _is_byte_level(self):
        return "ByteLevel" in json.dumps(self._json.get("decoder"))

    def _text_byte_lengths(self):
        return [self._bytes_of(self._pieces[i]) if i in self._pieces else 0 for i in range(self.text_size)]

    def _text_word_starts(self):
        if self._model == "WordPiece":
            return [not self._pieces.get(i, "").startswith("##") for i in range(self.text_size)]
        spaces = tuple(byte_letters()[ord(space)] for space in " \n\t\r") if self._is_byte_level else (_SPACE,)
        return [self._pieces.get(i, "").startswith(spaces) for i in range(self.text_size)]

    def _bytes_of(self, piece):
        if self._is_byte_level:
            return len(piece) if all(letter in _LETTERS for letter in piece) else len(piece.encode())
        if self._model == "WordPiece":
            return len(piece.removeprefix("##").encode())
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return 1
        return len(piece.replace(_SPACE, " ").encode())

    def _contents(self):
        return {FILE: self.content}

    def _settings(self):
        return {**super()._settings(), "roles": self.roles}

    @classmethod
    def load(cls, directory, extra_ids, specials=(), roles=()):
        return cls((pathlib.Path(directory) / FILE).read_bytes(), roles, extra_ids, specials)


def byte_letters():
    """byte -> a printing character for it, as GPT-2 chose them: itself where it prints, else one from 256 on."""
    prints = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in prints]
    return {byte: chr(byte) for byte in prints} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


_LETTERS = frozenset(byte_letters().values())


# ---- Reading files ---------------------------------------------------------------------------------------------------


def read_subwords(path, extra_ids=0, specials=()):
    """A SubwordTokenizer from tokenizer.json, vocab.json + merges.txt or vocab.txt: a directory, or one of the files.

    What its special tokens are for is read from tokenizer_config.json and special_tokens_map.json beside them, or else
    from their names.

    Raises:
        UserError: there is none of them, or it is damaged.
    """
    path = expand(path)
    names = (FILE, "merges.txt", "vocab.txt")
    if path.is_dir():
        path = next((path / name for name in names if (path / name).is_file()), path / FILE)
    try:
        beside = settings(path.parent)
        if path.name in ("merges.txt", "vocab.json"):
            library = _byte_level_bpe(path.with_name("vocab.json"), path.with_name("merges.txt"), beside)
        elif path.suffix == ".txt":
            library = _wordpiece(path, beside)
        else:
            from tokenizers import Tokenizer as Library

            library = Library.from_str(path.read_text("utf-8"))
            if not library.get_vocab_size():
                raise UserError(f"tokenizer: {path} holds no pieces: fetch it again")
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"tokenizer: {error.filename} cannot be read ({error.strerror})") from None
    except Exception as error:  # the library raises bare exceptions
        raise UserError(f"tokenizer: {path} cannot be read by the tokenizers library ({error})") from None
    return _finished(library, beside.spelled, extra_ids, specials)


def _byte_level_bpe(vocab, merges, beside):
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    pairs = [tuple(x.split(" ")) for x in merges.read_text("utf-8").split("\n") if x and not x.startswith("#version")]
    ids = json.loads(vocab.read_text("utf-8"))
    library = Library(models.BPE(vocab=ids, merges=pairs))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(beside.entries.get("add_prefix_space")))
    library.decoder = decoders.ByteLevel()
    names = {name for spellings in _SPELLED.values() for name in spellings}
    library.add_special_tokens([AddedToken(name, special=True) for name in ids if name in names])
    return _with_added(library, beside, merges.name)


def _wordpiece(path, beside):
    from tokenizers import models

    pieces = path.read_text("utf-8").split("\n")
    ids = {piece.rstrip("\r"): i for i, piece in enumerate(pieces) if piece}
    special = {name for spellings in _SPELLED.values() for name in spellings}
    cased = any(c.isupper() for piece in ids if piece not in special for c in piece if not piece.startswith("["))
    said = beside.entries
    lowercase, chinese = said.get("do_lower_case", not cased), said.get("tokenize_chinese_chars", True)
    how = {"strip_accents": said.get("strip_accents"), "handle_chinese_chars": chinese}
    library = _bert(models.WordPiece(ids, unk_token="[UNK]"), lowercase, **how)
    library = _with_added(library, beside, "vocab.txt")
    if library.token_to_id("[UNK]") is None:
        raise UserError(f"tokenizer: {path} is no whole vocabulary of WordPiece, it lacks [UNK]: fetch it again")
    return library


def _with_added(library, beside, file):
    """The library's tokenizer with the tokens that were added to the vocabulary in this file."""
    from tokenizers import AddedToken

    if not beside.knows(file):
        beside.refuse(file, f"which are a {beside.kind}'s")
    for i, token in beside.added.items():
        flags = {name: bool(token.get(name)) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        library.add_tokens([AddedToken(token["content"], **flags)])
        if library.token_to_id(token["content"]) != i:
            beside.refuse(file, f"as {token['content']!r}, added to it as {i}")
    return library


def _bert(model, lowercase, **how):
    from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Library

    library = Library(model)
    library.normalizer = normalizers.BertNormalizer(lowercase=lowercase, **how)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(cleanup=False)
    there = library.get_vocab()
    bert = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    library.add_special_tokens([AddedToken(name, special=True) for name in bert if name in there])
    return library


def _finished(library, spelled, extra_ids, specials):
    """spelled: role -> its token or None; KeyError: it is found here."""
    ids = library.get_vocab(with_added_tokens=True)
    special = {t.content for t in library.get_added_tokens_decoder().values() if t.special}
    framed, roles = _framed(json.loads(library.to_str()).get("post_processor")), {}
    for role in _ROLES:
        try:
            name = spelled(role)
        except KeyError:
            name = next((n for n in _SPELLED[role] if n in special or (n in ids and role == "unk")), framed.get(role))
        if name is not None and name not in ids:
            raise UserError(f"tokenizer: {role}_token is {name!r}, which is none of its {len(ids)} pieces")
        if name is not None:
            roles[role] = ids[name]
    return SubwordTokenizer(library.to_str().encode(), tuple(roles.items()), extra_ids, specials)


def _framed(processor):
    """{cls, sep: tokens} that a tokenizer.json puts around a text, where both are there, as RoBERTa's <s> and </s>."""
    processor = processor or {}
    if processor.get("type") in ("RobertaProcessing", "BertProcessing"):
        return {name: processor[name][0] for name in ("cls", "sep")}
    parts = processor.get("single") or []
    if [list(part) for part in parts] == [["SpecialToken"], ["Sequence"], ["SpecialToken"]]:
        return {name: part["SpecialToken"]["id"] for name, part in zip(("cls", "sep"), parts[::2])}
    return {}


# ---- Learning --------------------------------------------------------------------------------------------------------


def train_bpe(texts, vocab_size, extra_ids=100, max_bytes=10_000_000, specials=()):
    """Byte-level BPE learnt from texts: pad 0, eos 1, the 256 bytes, then merges. Loses nothing of a text.

    Args and Raises: as `train_sentencepiece`.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    how = dict(special_tokens=["<pad>", "</s>"], initial_alphabet=sorted(alphabet), show_progress=False)
    texts = _taken(texts, max_bytes)
    trained = _trained(library, trainers.BpeTrainer, how, 2 + 256, texts, vocab_size, extra_ids, specials)
    return _finished(trained, {}.__getitem__, extra_ids, specials)


def train_wordpiece(texts, vocab_size, extra_ids=100, max_bytes=10_000_000, specials=()):
    """WordPiece learnt from texts in lower case, as BERT's: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then pieces.

    Args and Raises: as `train_sentencepiece`.
    """
    from tokenizers import models, trainers

    names, texts = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], list(_taken(texts, max_bytes))
    library = _bert(models.WordPiece(unk_token="[UNK]"), lowercase=True)
    # The trainer numbers letters inside words as it meets them, in no fixed order; told beforehand, they have one.
    words = lambda text: library.pre_tokenizer.pre_tokenize_str(library.normalizer.normalize_str(text))
    inside = sorted({letter for text in texts for word, _ in words(text) for letter in word[1:]})
    how = dict(special_tokens=[*names, *(f"##{letter}" for letter in inside)], show_progress=False)
    trained = _trained(library, trainers.WordPieceTrainer, how, len(names), texts, vocab_size, extra_ids, specials)
    library = _bert(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"), True)
    return _finished(library, {}.__getitem__, extra_ids, specials)


def _trained(library, trainer, how, least, texts, vocab_size, extra_ids, specials):
    above = extra_ids + len(specials)
    if vocab_size <= least + above:
        raise UserError(
            f"tokenizer: a vocabulary of {vocab_size} is too small: {above} sentinels and specials above {least} ids "
            f"that are always there; use {least + above + 256} or more"
        )

    library.train_from_iterator(texts, trainer(vocab_size=vocab_size - above, **how))
    found = library.get_vocab_size() + above
    if library.get_vocab_size() <= least:
        raise UserError("tokenizer: there is no text to learn a vocabulary from; name a source that holds some")
    kind = trainer.__name__.removesuffix("Trainer").lower()
    if found < vocab_size:
        raise UserError(
            f"tokenizer: this text supports a vocabulary of at most {found}, not {vocab_size}; use that, as in "
            f"'{kind}:{found}', or more text"
        )
    if found > vocab_size:
        raise UserError(
            f"tokenizer: the characters of this text need a vocabulary of at least {found}, not {vocab_size}; use that "
            f"or more, as in '{kind}:{found}'"
        )
    return library


def _taken(texts, max_bytes):
    """Texts in order until so many characters are taken, without words so long that learning would not end."""
    for text in texts:
        yield _LONG.sub(r"\1 ", text[:max_bytes])
        max_bytes -= len(text)
        if max_bytes <= 0:
            return
