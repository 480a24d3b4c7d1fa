"""Which fields of records are meant where nobody says: those of plain names, and only where one reading fits.

    class, classes, number   input {text} or {sentence}      label `label`, `intent` or `class`
    tags                     input {tokens} or {words},      label `tags`, `ner_tags`, `labels`, `label`, `spans`,
                             else {text} or {sentence}       `entities` or `slots`
    answer                   input {question}                label `answers`, target {context}
    turns of a dialogue      input {context}                 target {response}
    stdlib:KIND              as that source has them

in any case, and `split` for the split, where no file says it. What is taken is said in the summary of the preparation.
"""

import dataclasses
import re

from paradigm.errors import UserError
from paradigm.names import SPLIT_OF, few
from t5like import rows, stdlib_records, tables

_NAME = re.compile(r"[^\W\d][\w.-]{0,29}")
_LOOKED = 100  # records of whose fields one reading has to fit
_TEXTS, _LABELS = ("text", "sentence"), ("label", "intent", "class")
_TURNS = ("turns", "messages", "conversations", "conversation", "dialogue", "dialog")
_NAMES = {  # label_kind: (input, target, label)
    "class": (_TEXTS, (), _LABELS),
    "classes": (_TEXTS, (), (*_LABELS, "labels")),
    "number": (_TEXTS, (), (*_LABELS, "score")),
    "tags": (("tokens", "words"), (), ("tags", "ner_tags", "labels", "label", "spans", "entities", "slots")),
    "answer": (("question",), ("context",), ("answers",)),
}


def complete(recipe):
    """A TextRecords with the input, target and label that it leaves open; itself where it says its input.

    Raises UserError, with the fields that there are, where no field or several may be meant.
    """
    if recipe.input:
        return recipe
    if recipe.turns:
        return _filled(recipe, "{context}", "{response}", "")
    if recipe.source.startswith("stdlib:"):
        *fields, group = stdlib_records.templates(recipe.source.partition(":")[2])
        return dataclasses.replace(_filled(recipe, *fields), group=recipe.group or group)
    fields, split, part = _fields(recipe)
    recipe = dataclasses.replace(recipe, split=recipe.split or split)
    texts, contexts, labels = _NAMES[recipe.label_kind]
    if recipe.label_kind == "tags" and not _one(fields, texts):
        texts = _TEXTS  # whose words stand between spaces
    text, context, label = (_one(fields, names) for names in (texts, contexts, labels))
    if len(text) != 1:
        which = f"{' and '.join(text)} may be it" if text else f"none is called {' or '.join(texts)}"
        inside = [field for field in fields if field.lower().rpartition(".")[2] in texts]
        turns, example = _one(fields, _TURNS), (text or inside or fields)[0]
        more = f"; if {turns[0]} holds the turns of a dialogue, set TextRecords.turns = '{turns[0]}'" if turns else ""
        if part.kind in ("tsv", "csv") and not recipe.columns:
            more = "; without a header, name its columns (TextRecords.columns, --columns)"
            example = example if all(_NAME.fullmatch(field) for field in fields) else texts[0]  # no header, it seems
        raise UserError(
            f"TextRecords.input is not set: give a template of fields, as in '{{{example}}}'; of "
            f"{few(f[:30] for f in fields)} in {tables.place_of(part)} {which}{more}"
        )
    wants_label = not recipe.label and (not recipe.target or recipe.label_kind == "answer")
    if wants_label and len(label) > 1:
        raise UserError(
            f"TextRecords.label is not set, and {' and '.join(label)} may be it: set it to one of them, or for "
            "none set TextRecords.input"
        )
    brace = lambda names: f"{{{names[0]}}}" if len(names) == 1 else ""
    return _filled(recipe, brace(text), brace(context), label[0] if wants_label and label else "")


def _filled(recipe, text, target, label):
    return dataclasses.replace(recipe, input=text, target=recipe.target or target, label=recipe.label or label)


def _fields(recipe):
    """(names of the fields of the first records, that which says their split or "", the part that holds them)."""
    broken, first = 0, None
    parts = tables.list_parts(recipe.source, recipe.valid_glob, recipe.exclude, recipe.columns).pieces
    by_files = any(part.split != "train" or part.kind == "splits" for part in parts)
    for part in sorted(parts, key=lambda part: part.split != "train"):  # what is trained on says what is meant
        fields, says, left = {}, [], _LOOKED  # of some records, since one may leave out what it has nothing for
        for name, record in tables.read(part, recipe.columns):
            if isinstance(record, dict) and record:
                says += [f for f in _one(record, ("split",)) if str(record[f]).strip().lower() in SPLIT_OF]
                fields, left = fields | dict.fromkeys([*record, *rows.fields_of(record)]), left - 1
                if not left:
                    break
            else:
                broken, first = broken + 1, first or f"{name} {record or 'is empty'}"
        if fields:
            return list(fields), says[0] if says and not by_files else "", part
    what = f"none of its {broken:,} records can be used: {first}" if broken else "there is no record to train on in it"
    raise UserError(f"source {recipe.source}: {what}")


def _one(fields, names):
    return [field for field in fields if field.lower() in names]
