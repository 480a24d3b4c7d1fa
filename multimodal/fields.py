"""What the sources of pairs share: captions out of named fields, and which pairs are held out."""

import dataclasses
import re

from paradigm.errors import UserError
from paradigm.records import groups_held_out

RECIPE = "PairData"  # whose settings the readers of pictures name
_FIELD = re.compile(r"\{([^{}]+)\}")
PAIR = "pair"  # the label of shapes that names colour and shape
IMAGE, TEXT = "image", ("caption",)  # of a PairData that names neither
_PLAIN = {  # what else these are called
    IMAGE: (
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "path",
        "image_path",
        "image_file",
        "image_name",
        "img",
        "picture",
    ),
    TEXT[0]: ("captions", "text", "title", "description", "alt", "sentence", "comment"),
}


def captions_of(fields, text, separator=""):
    """The captions that some named texts make: a tuple of str, none of them empty.

    fields: name -> str, bytes, or several of them, or {"text": several}. text: of each a name, or a sentence with names
    in braces; one that names an empty field says nothing. separator: what stands between the words of a list in a
    field, read as a comma.
    """
    found = []
    for wanted in text:
        names = _FIELD.findall(wanted)
        if not names:
            found += _texts(fields.get(wanted), separator)
            continue
        values = {name: (_texts(fields.get(name), separator) or ("",))[0] for name in names}
        if all(values.values()):
            found.append(_FIELD.sub(lambda match: values[match[1]], wanted))
    return tuple(found)


def _texts(value, separator):
    if isinstance(value, dict):
        value = value.get("text")
    if value is None:
        return ()
    values = [value] if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__") else value
    if wrong := next((v for v in values if isinstance(v, dict)), None):
        raise ValueError(f"where its text should be stands an object of {', '.join(map(str, wrong))}")
    texts = (_decoded(v) if isinstance(v, bytes) else str(v) for v in values if v is not None)
    texts = (" ".join((t.replace(separator, ", ") if separator else t).split()) for t in texts)
    return tuple(t for t in texts if t)


def _decoded(raw):
    try:
        return str(raw, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"its text is not UTF-8 (byte {error.start})") from error


def filled(form, cell):
    """A text with its {names} replaced by cell(name); of a bare name, cell(name)."""
    return _FIELD.sub(lambda match: cell(match[1]), form) if _FIELD.search(form) else cell(form)


def form_of(header, rows, pictures):
    """How some rows' cells name one of these pictures each, as in '{split}/{id}.png'; "" in no way, or several.

    header: the names of the columns. rows: lists of str, two at least, of which the first hundred are looked at.
    """
    forms, there, rows = set(), set(pictures), rows[:100]
    cells = {
        cell: name for name, cell in zip(header, rows[0] if len(rows) > 1 else ()) if isinstance(cell, str) and cell
    }
    for picture in pictures:
        stem, dot, ending = picture.rpartition(".")
        for whole, rest in ((picture, ""), (stem, dot + ending)):
            for cell, name in cells.items():
                if whole == cell or whole.endswith(f"/{cell}"):
                    before = (
                        f"{{{cells[part]}}}" if part in cells else part for part in whole[: -len(cell)].split("/")
                    )
                    forms.add(f"{'/'.join(before)}{{{name}}}{rest}")
    number = {name: k for k, name in enumerate(header)}
    fits = [form for form in forms if all(filled(form, lambda name: row[number[name]]) in there for row in rows)]
    return fits[0] if len(fits) == 1 else ""


def names_in(text):
    """The names of fields that `captions_of` would read."""
    return [name for wanted in text for name in (_FIELD.findall(wanted) or [wanted])]


def complete(recipe, there):
    """A PairData with the columns that it leaves open, where `there` has none of their own names: plain ones, in any
    case, and only where one reading fits; and `split`, where nothing else says what is held out."""
    one = lambda names: [name for name in there if name.lower() in names]
    changes = {}
    if recipe.image == IMAGE and IMAGE not in there and len(found := one((IMAGE, *_PLAIN[IMAGE]))) == 1:
        changes["image"] = found[0]
    if recipe.text == TEXT and TEXT[0] not in there and len(found := one((*TEXT, *_PLAIN[TEXT[0]]))) == 1:
        changes["text"] = tuple(found)
    if recipe.label == PAIR and PAIR not in there:  # as the run files say of the scenes that a program draws
        changes["label"] = ""
    if not (recipe.split or recipe.test_images) and len(found := one(("split",))) == 1:
        changes["split"] = found[0]
    return dataclasses.replace(recipe, **changes)


def held_out(keys, share, where):
    """bool [n]: which of n pairs are held out, those of the groups with the smallest keys; one group at least."""
    held = groups_held_out(keys, share)
    if not held.any():
        raise UserError(f"{where} holds {len(held)} pair{'s' * (len(held) != 1)} that belong together: none can "
                        "be held out for validation, so add some")  # fmt: skip
    return held
