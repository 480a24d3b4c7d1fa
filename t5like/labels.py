"""What may be known of a record beside its texts: a class, several, a number, a tag for each word, an answer's place.

    class     a name, or a whole number                                  int32 [], -1 for none
    classes   a list of names, or a text with commas between             float32 [C], 1 for those; all -1 for none
    number    a number                                                   float32 [], nan for none
    tags      as many names as the words of the input; or of its         int32 [words], -1 for none
              characters spans, [start, end, name] or {"start", "end",
              "label"}: B-name, I-name ... and O (BIO)
    answer    {"text", "answer_start"} of the target, each one or a      int32 [answers, 2]: first and last word of each
              list, or a list of such objects; [] where there is none

`read` takes a label from a record as JSON has it, `encode` makes of it what the right column says.
"""

import ast
import contextlib
import json
import math
import re

import numpy as np

from paradigm.errors import choose
from t5like import rows, tables
from t5like.sentences import UNSPACED

KINDS = ("class", "classes", "number", "tags", "answer")
NAMED = ("class", "classes", "tags")  # whose names are learnt from the training records
WORDS = {"tags": "input", "answer": "target"}  # which of the two texts is read word by word
_WORD = re.compile(r"\S+")
_UNCOMMAED = re.compile(r"""^\s*\[\s*(['"])[^'",]*\1\s+['"]""")
_UNSPACED = re.compile(UNSPACED)


def check_kind(kind):
    """The kind. Raises UserError for another word, with the nearest."""
    choose("label_kind", kind, dict.fromkeys(KINDS))
    return kind


def words_of(kind, template, record):
    """The words of the text that is read word by word: those of a list of tagged ones, or what stands between spaces.

    Raises ValueError where the template is no single field's.
    """
    value = _whole(template, record)
    if kind == "tags" and isinstance(value := _listed(value, template.strip()[1:-1]), list):
        return [tables.text_of(word, template.strip()[1:-1]) for word in value]
    return _WORD.findall(tables.render(template, record))


def _whole(template, record):
    """What stands in the field that is all of a template; None where it has other text or fields."""
    fields = tables.fields_in(template)
    return rows.lookup(record, fields[0]) if [template.strip()] == [f"{{{field}}}" for field in fields] else None


def _listed(value, field):
    """A value, a list where it is a text that holds one as Python or JSON writes it, as tables have lists.

    Raises ValueError for one as numpy writes it, without commas.
    """
    if not (isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]")):
        return value
    if _UNCOMMAED.search(value):
        raise ValueError(f"has a list without commas in {field!r} ({value[:40]}): write it as JSON has it")
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError):
            return parse(value.strip())
    return value


def read(kind, record, field, words, template=""):
    """The label in a field, as JSON has it; None for none. Raises ValueError saying what is wrong with it.

    words: of the text that is read word by word (see `words_of`), of answers that text. template: of the words of tags.
    """
    value = rows.lookup(record, field)
    if kind == "class":
        return tables.class_of(value, field) or None
    if kind in ("classes", "tags"):
        value = _listed(value, field)
    if kind == "classes":
        if isinstance(value, list) and len(set(map(str, value))) < len(value) and all(v in (0, 1) for v in value):
            raise ValueError(f"has {str(value)[:40]} in {field!r}, a place for each class: name those that hold")
        parts = value if isinstance(value, list) else re.split(r"\s*,\s*", tables.text_of(value, field).strip())
        return sorted({tables.class_of(part, field) for part in parts} - {""})
    if kind == "number":
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"has {str(value)[:40]!r} in {field!r}, which is no number")
        return number
    if kind == "tags":
        text = _whole(template, record)
        spans = isinstance(value, list) and (isinstance(value[0], (list, dict)) if value else isinstance(text, str))
        if spans:
            if not isinstance(text, str):
                raise ValueError(f"has spans in {field!r}, which count characters: set input to their text's field")
            return _bio(value, field, text)
        tags = value if isinstance(value, list) else tables.text_of(value, field).split()
        if len(tags) != len(words):
            raise ValueError(f"has {len(tags)} tags in {field!r} for {len(words)} words")
        return [tables.class_of(tag, field) for tag in tags]
    return _answers(value, field, words)


def answers_in(value, field):
    """[(text, answer_start)] of a field. Raises ValueError for another form."""
    if isinstance(value, dict):
        many = lambda x: x if isinstance(x, list) else [x]
        return list(zip(many(value.get("text")), many(value.get("answer_start"))))
    if isinstance(value, list) and all(isinstance(v, dict) for v in value):
        return [(v.get("text"), v.get("answer_start")) for v in value]
    raise ValueError(f"has no answers in {field!r}: give objects with text and answer_start")


def _answers(value, field, words):
    """[[first word, last word] ...]; `words` is the context as it is written."""
    spans = []
    for text, start in answers_in(value, field):
        if not isinstance(text, str) or not isinstance(start, int) or not text.strip():
            raise ValueError(f"has an answer in {field!r} without text and answer_start, a character's number")
        if words[start : start + len(text)] != text:
            raise ValueError(f"has the answer {text[:40]!r} in {field!r}, which is not in its context at {start}")
        begin, end = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
        found = _touched(words, begin, end)
        if found is None:
            raise ValueError(
                f"has the answer {text[:40]!r} in {field!r} inside of what stands between spaces in its context, which "
                "is read as one word: put spaces between words or letters, and count answer_start anew"
            )
        spans.append(found)
    return spans


def _touched(text, begin, end):
    """[first, last] of the words that characters begin to end touch; None within what has no spaces between them."""
    touched = [(k, m) for k, m in enumerate(_WORD.finditer(text)) if m.start() < end and m.end() > begin]
    (first, before), (last, behind) = touched[0], touched[-1]
    return None if _UNSPACED.search(text[before.start() : begin] + text[end : behind.end()]) else [first, last]


def _span(span):
    """(start, end, name) of a span as doccano and spaCy write it, or as Prodigy and Label Studio do."""
    if isinstance(span, dict):
        name = span.get("label", span.get("labels"))
        return span.get("start"), span.get("end"), name[0] if isinstance(name, list) and len(name) == 1 else name
    return span if isinstance(span, list) and len(span) == 3 else (None, None, None)


def _bio(spans, field, text):
    """A tag for each word of a text from spans of its characters (Ramshaw & Marcus 1995: B- begins, I- goes on)."""
    tags = ["O"] * len(_WORD.findall(text))
    for span in spans:
        start, end, name = _span(span)
        if type(start) is not int or type(end) is not int or not isinstance(name, str) or not name.strip():
            raise ValueError(f"has {str(span)[:60]} in {field!r}, which is no span: [start, end, name] is one")
        if not 0 <= start < end <= len(text) or not (inside := text[start:end]).strip():
            raise ValueError(
                f"has the span {start} to {end} in {field!r}, and its text of {len(text)} has no word there"
            )
        begin = start + len(inside) - len(inside.lstrip())
        found = _touched(text, begin, start + len(inside.rstrip()))
        if found is None:
            raise ValueError(
                f"has the span {inside[:40]!r} in {field!r} inside of what stands between spaces, which is read as one "
                "word: put spaces between words or letters, and count anew"
            )
        first, last = found
        if set(tags[first : last + 1]) != {"O"}:
            raise ValueError(f"has the span {inside[:40]!r} in {field!r} on a word that another has: leave one out")
        tags[first : last + 1] = [f"B-{name.strip()}", *[f"I-{name.strip()}"] * (last - first)]
    return tags


def names_in(kind, label):
    """The names of classes or tags that a label holds."""
    if kind not in NAMED or label is None:
        return []
    return [label] if kind == "class" else label


def encode(kind, label, number):
    """A label as an array, see the top of this file. number: name -> its number."""
    if kind == "class":
        return np.int32(-1 if label is None else number[label])
    if kind == "classes":
        hot = np.full(len(number), -1.0 if label is None else 0.0, np.float32)
        hot[[number[name] for name in label or ()]] = 1.0
        return hot
    if kind == "number":
        return np.float32("nan" if label is None else label)
    if kind == "tags":
        return np.array([number[name] for name in label or ()], np.int32)
    return np.array(label or (), np.int32).reshape(-1, 2)


def encode_words(tokenizer, words):
    """(ids int32 [n], starts int32 [words]) of words with spaces between.

    starts: where each word's first piece is among the ids; of a word that leaves none, as "", -1. A piece that is the
    space before the word and nothing else, as of bytes, is not its first.
    """
    if not words:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    plain = tokenizer.encode_batch(words)
    spaced = [plain[0], *tokenizer.encode_behind([f" {word}" for word in words[1:]])]
    lengths = np.array([len(ids) for ids in spaced])
    starts = np.cumsum(lengths) - lengths
    alone = [len(a) == len(b) + 1 and np.array_equal(a[1:], b) for a, b in zip(spaced, plain)]
    starts = np.where([len(ids) > 0 for ids in plain], starts + np.array(alone), -1)
    return np.concatenate(spaced).astype(np.int32), starts.astype(np.int32)
