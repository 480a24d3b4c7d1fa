"""Which text is held out: a share of its bytes, however long its documents are, or the files that a person names."""

import dataclasses
import math
import pathlib

from paradigm.errors import UserError
from paradigm.names import few, split_in
from paradigm.records import hash_of
from t5like import sources
from t5like.files import check_patterns, is_packed, matches, stem_of

SURVEYED = 256 << 20  # bytes of a corpus that is read once more, to know how long its documents are


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Which text is for validation: files that match, documents by the hashes of their names, ends of documents.

    globs: patterns of files' names. share: documents whose hash is below it, and the one called `name`, whole. ends:
    ((file, document), bytes): so much of a document's end. longest, rate: of any document of more bytes than `longest`
    just its end, `rate` of it, whatever its hash. named: the files
    whose names say so. note: what else names say.
    """

    globs: str = ""
    name: str | None = None
    share: float = 0.0
    ends: tuple[tuple[tuple[str, str], int], ...] = ()
    longest: int | None = None
    rate: float = 0.0
    named: bool = False
    note: str = ""

    def __call__(self, piece, name, raw):
        """The place in a document's bytes from which on they are held out."""
        for key, size in self.ends:
            if key == (piece.names[0], name):
                return sources.cut_at(raw, len(raw) - size)
        if self.longest is not None and len(raw) > self.longest:
            return sources.cut_at(raw, len(raw) - int(self.rate * len(raw)))
        whole = name == self.name or hash_of(name) < self.share or matches(piece.names, self.globs)
        whole = whole or (self.named and piece.split == "valid")
        return 0 if whole else len(raw)

    @property
    def described(self):
        if self.globs:
            return f"the files that match {self.globs}"
        if self.named:
            return "the files whose names say so"
        ends = [f"the end of {document}" for (_, document), _ in self.ends]
        if self.longest is not None:
            ends = [f"of those above {self.longest:,} bytes the end of each"]
        whole = ["documents by a hash of their names"] if self.share or self.name is not None else []
        return " and ".join(whole + ends) or "nothing"


def split_text(recipe, listing):
    """(pieces to read, HeldOut): of the text, by bytes, about `valid` is held out, however long its documents are."""
    check_patterns(recipe.source, "exclude", recipe.exclude, listing.pieces)
    pieces = [p for p in listing.pieces if not matches(p.names, recipe.exclude)]
    if not pieces:
        others = f" but {listing.left}: name what is text with --extensions" if listing.left else ""
        raise UserError(f"source {recipe.source}: exclude={recipe.exclude!r} leaves nothing{others}")
    check_patterns(recipe.source, "valid_glob", recipe.valid_glob, pieces)
    name = lambda p: p.names[-1] if p.kind == "splits" else p.names[0]
    own = [p for p in pieces if not matches(p.names, recipe.valid_glob)]
    files = lambda split: list(dict.fromkeys(name(p) for p in own if p.split == split))
    valid, test = files("valid"), files("test")
    if recipe.valid_glob or recipe.exclude or not recipe.valid:
        own = [*valid, *test]
        note = f"{few(own, 3)} {'are' if len(own) > 1 else 'is'} trained on: exclude leaves files out" if own else ""
        if recipe.valid_glob or not recipe.valid:
            return pieces, HeldOut(globs=recipe.valid_glob, note=note)
    else:
        pieces = [p for p in pieces if p.split != "test"]
        said = [f"{few(names, 3)} {'are' if len(names) > 1 else 'is'} {what}"
                for names, what in ((valid, "held out"), (test, "left out")) if names]  # fmt: skip
        note = f"by names: {', '.join(said)} (valid_glob and exclude choose otherwise)" if said else ""
        if valid:
            return pieces, HeldOut(named=True, note=note)
    note = note or _without_train(recipe.source, pieces)
    if not note and (field := sources.split_field(pieces)):
        note = f"records say one in {field!r}, which is not read: give each split a file of its own"
    return pieces, dataclasses.replace(_drawn(recipe, pieces), note=note)


def _without_train(source, pieces):
    """What to say of files called valid or test beside none that is called train. Raises UserError if all are."""
    files = dict.fromkeys(p.names[0] for p in pieces if p.kind != "tfds" and not p.split)
    says = lambda name: {split_in(stem_of(part)) for part in pathlib.PurePosixPath(name).parts} & {"valid", "test"}
    odd = [name for name in files if says(name)]
    if len(odd) == len(files) > 1:
        raise UserError(f"source {source} holds {few(odd, 4)} and no file of train: add that, or name the one to read")
    rest = "since nothing beside is called train: exclude leaves files out"
    return (
        f"{few(odd, 3)} {'are' if len(odd) > 1 else 'is'} trained on, {rest}"
        if odd and pieces[0].path != source
        else ""
    )


def _drawn(recipe, pieces):
    """The HeldOut of pieces whose names say nothing."""
    if any(p.kind == "tfds" and p.name.startswith("validation/") for p in pieces):
        return HeldOut(globs="validation/*")  # the data set has made the choice
    total = sum(p.size for p in pieces)
    if total > SURVEYED and not all(p.single for p in pieces):  # many documents: a hash alone takes about its share
        return HeldOut(share=recipe.valid, longest=int(recipe.valid * total / 64), rate=recipe.valid)
    return _of_share(recipe.valid, [d for p in pieces for d in _sizes(p, total <= SURVEYED)])


def _sizes(piece, exact):
    """((file, document), bytes) of the documents of a piece. exact: not an estimate."""
    if piece.single and not (exact and is_packed(piece.names[0])):
        return [((piece.names[0], piece.name), piece.size)]
    return [((piece.names[0], name), len(raw)) for name, raw in sources.read(piece)]


def _of_share(share, documents):
    """The HeldOut of about this share of the bytes of documents whose sizes are known.

    Documents by their hashes, which does not depend on the others, where that takes between half and twice the share;
    else one after the other by their hashes until it is reached, of the last one its end.
    """
    order = sorted((hash_of(name), (file, name), size) for (file, name), size in documents if size)
    total = sum(size for _, _, size in order)
    wanted = share * total
    by_hash = sum(size for key, _, size in order[1:] if key < share) + sum(size for _, _, size in order[:1])
    if 2 * by_hash >= wanted and by_hash <= 2 * wanted and 2 * (total - by_hash) >= total - wanted:
        return HeldOut(name=order[0][1][1] if order else None, share=share)
    left = max(1, round(wanted))
    for key, document, size in order:
        if size > left:
            return HeldOut(share=key, ends=((document, left),))
        left -= size
        if not left:
            return HeldOut(share=math.nextafter(key, 1))
    return HeldOut()
