"""Records with fields become shards of examples: two texts as tokens, a class, and the fields themselves.

As for windows, parts are dealt (prepare.py) to jobs by size alone and the bytes do not depend on the workers. An
example is stored as two uint32 (tokens of either text), the tokens in the smallest unsigned type that holds the
vocabulary, and JSON: {"label": as labels.py reads it or null, "fields": {...}}, with "words", the place of each one's
first token, where a text is read word by word.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import pathlib
import re
from typing import Any

import numpy as np

from paradigm.classes import no_classes
from paradigm.errors import UserError
from paradigm.names import SPLIT_OF, SPLITS, few
from paradigm.records import hash_of
from t5like import guess, labels, rows, tables, unknown
from t5like.prepare import SAMPLE_PER_ID, Kind, told_of_source
from t5like.shards import Shard, digest, errors_as_user_errors, record_name, shard_name, write_json
from t5like.tokenizers import load_tokenizer

LENGTHS = ("input_lengths", "target_lengths", "both_lengths")  # how many records there are of each length in tokens
_SIDES = ("input", "target")
NAMED = 3  # broken records that are named; all are counted
_SURVEYED = 10_000  # records of the first part among which one is held out in any case
_NONE = ("null", "nan", "n/a", "<na>", "none")  # what tables say where a cell is empty
_TURNS = (("role", "content"), ("from", "value"))  # what a turn has its speaker and text in
_TOGETHER = 256  # texts that are encoded at once


@dataclasses.dataclass(frozen=True)
class Example:
    """A record as its templates read it. label: as labels.py reads it, or None. key: hash in [0, 1) of what it is.

    words: of the text that is read word by word, or None.
    """

    split: str
    input: str
    target: str
    label: Any
    fields: dict
    key: float
    words: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Which training examples validate: a share of them by their hashes, and those of one hash in any case."""

    share: float = 0.0
    key: float = -1.0
    note = ""  # of the names of files, which the summary tells with what was read

    def __call__(self, example):
        """The split of an example."""
        chosen = example.split == "train" and (example.key < self.share or example.key == self.key)
        return "valid" if chosen else example.split

    @property
    def described(self):
        return f"{self.share:.2g} of the records by a hash of their inputs" if self.share else "by the splits there are"


def examples(recipe, part):
    """(name, Example or ValueError) of every record of a part, in order."""
    for name, record in tables.read(part, recipe.columns):
        try:
            if isinstance(record, Exception):
                raise record
            found = [_example(recipe, part.split, one) for one in replies(recipe, record)]
        except ValueError as error:
            found = [error]
        yield from ((name, one) for one in found)


def replies(recipe, record):
    """A record, or of a dialogue one for each turn of the role that replies: with `context`, the turns before it as
    recipe.turn makes them, `response`, and `dialogue`, by which they are held out together."""
    if not recipe.turns:
        return [record]
    turns = rows.lookup(record, recipe.turns)
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"has no list of turns in {recipe.turns!r}")
    said = []
    for k, turn in enumerate(turns):
        if isinstance(turn, dict):
            role, text = (rows.lookup(turn, name) for name in _TURNS["from" in turn])
        else:
            role, text = recipe.roles[k % len(recipe.roles)], turn
        if role not in recipe.roles:
            raise ValueError(
                f"has a turn of {role!r}, which is none of {', '.join(recipe.roles)}: set TextRecords.roles to "
                "all that speak, the last of them who replies"
            )
        said.append((role, tables.text_of(text, recipe.turns)))
    whole = {k: v for k, v in record.items() if k != recipe.turns} | {"dialogue": hash_of(repr(said))}
    written = [tables.render(recipe.turn, {"role": role, "text": text}) for role, text in said]
    found = [
        {**whole, "context": "".join(written[:k]), "role": role, "response": text}
        for k, (role, text) in enumerate(said)
        if k and role == recipe.roles[-1]
    ]
    if not found:
        raise ValueError(f"has no turn of {recipe.roles[-1]!r} behind another: nobody replies")
    return found


def _example(recipe, split, record):
    if recipe.split:
        word = tables.text_of(rows.lookup(record, recipe.split), recipe.split)
        split = SPLIT_OF.get(word.strip().lower())
        if split is None:
            raise ValueError(f"has {word[:40]!r} in {recipe.split!r}, which is none of {', '.join(SPLIT_OF)}")
    text, target, label = tables.render(recipe.input, record), "", None
    if not text.strip():
        raise ValueError(f"has nothing in {', '.join(tables.fields_in(recipe.input))}: its input is empty")
    try:
        target = tables.render(recipe.target, record)
    except rows.Missing:
        if split != "test":  # its answers are often kept secret
            raise
    side = labels.WORDS.get(recipe.label_kind)
    words = side and tuple(labels.words_of(recipe.label_kind, getattr(recipe, side), record))
    if words and side == "input":
        text = " ".join(words)
    if recipe.label:
        try:
            found = target if recipe.label_kind == "answer" else words
            label = labels.read(recipe.label_kind, record, recipe.label, found, recipe.input)
            if label is None and split != "test":
                raise ValueError(f"has nothing in {recipe.label!r}: it is of no class")
        except rows.Missing:
            if split != "test":
                raise
    group = tables.text_of(rows.lookup(record, recipe.group), recipe.group) if recipe.group else text
    key = record["dialogue"] if recipe.turns and not recipe.group else hash_of(group)
    return Example(split, text, target, label, record, key, words)


# ------------------------------------------------------------------------------------------------------------ the files


def encode_example(inputs, targets, label, fields, dtype, words=None):
    """Bytes of one example; see the top of this file."""
    lengths = np.array([len(inputs), len(targets)], "<u4").tobytes()
    more = {} if words is None else {"words": words.tolist()}
    rest = json.dumps({"label": label, "fields": fields, **more}).encode()
    return lengths + inputs.astype(dtype).tobytes() + targets.astype(dtype).tobytes() + rest


def decode_example(raw, dtype):
    """(inputs int32 [n], targets int32 [m], label, fields, words or None) of those bytes; ValueError if it cannot be
    one."""
    if len(raw) < 8:
        raise ValueError(f"{len(raw)} bytes are no example")
    n, m = np.frombuffer(raw, "<u4", 2).tolist()
    size = np.dtype(dtype).itemsize
    tokens = np.frombuffer(raw, dtype, n + m, offset=8).astype(np.int32)
    rest = json.loads(raw[8 + size * (n + m) :])
    return tokens[:n], tokens[n:], rest["label"], rest["fields"], rest.get("words")


class _Examples(Shard):
    """Encodes examples and writes them."""

    def __init__(self, path, tokenizer, dtype, recipe):
        counts = ("records", "input_tokens", "target_tokens", "longest_input", "longest_target", "unknown", "joined")
        super().__init__(path, **dict.fromkeys(counts, 0), classes={}, **{name: {} for name in LENGTHS})
        self.tokenizer, self.dtype, self.kind, self.waiting = tokenizer, dtype, recipe.label_kind, []
        templates = [recipe.target] if self.kind == "tags" else [recipe.input, recipe.target]
        self.fields = [field for template in templates for field in tables.fields_in(template)]

    def add(self, example):
        self.waiting.append(example)
        if len(self.waiting) == _TOGETHER:
            self._flush()

    def _flush(self):
        texts = {side: self.tokenizer.encode_batch([getattr(e, side) for e in self.waiting]) for side in _SIDES}
        words = [None] * len(self.waiting)
        if side := labels.WORDS.get(self.kind):
            read = [labels.encode_words(self.tokenizer, e.words) for e in self.waiting]
            texts[side], words = [ids for ids, _ in read], [places for _, places in read]
        for e, a, b, places in zip(self.waiting, texts["input"], texts["target"], words):
            self.write(encode_example(a, b, e.label, e.fields, self.dtype, places))
            c = self.counts
            c["records"] += 1
            c["input_tokens"], c["target_tokens"] = c["input_tokens"] + len(a), c["target_tokens"] + len(b)
            c["unknown"] += sum(unknown.count_in(ids, self.tokenizer.vocabulary) for ids in (a, b))
            c["joined"] += any(_is_several(e.fields, field) for field in self.fields)
            c["longest_input"] = max(c["longest_input"], len(a))
            c["longest_target"] = max(c["longest_target"], len(b))
            for name, length in zip(LENGTHS, (len(a), len(b), len(a) + len(b))):
                c[name][str(length)] = c[name].get(str(length), 0) + 1
            for name in labels.names_in(self.kind, e.label):
                c["classes"][name] = c["classes"].get(name, 0) + 1
        self.waiting = []

    def close(self):
        self._flush()
        return super().close()


def _is_several(record, field):
    """Whether a template joins the texts of a list there."""
    try:
        found = rows.lookup(record, field)
    except rows.Missing:
        return False
    return isinstance(found, list) and len(found) > 1


# ------------------------------------------------------------------------------------------------------ the preparation


def _listing(recipe):
    return tables.list_parts(recipe.source, recipe.valid_glob, recipe.exclude, recipe.columns)


def _split(recipe, listing):
    """(parts, HeldOut): at least one example is held out whatever the hashes say, where nothing else says who is."""
    parts = listing.pieces
    broken, first = 0, None
    for part in parts:  # the first whole record is nearly always the first: a wrong template is told at once
        found = ((name, e) for name, e in examples(recipe, part) if part.split == "train" or recipe.split)
        for name, example in found:
            if isinstance(example, Example) and example.split == "train":
                break
            if not isinstance(example, Example):
                broken, first = broken + 1, first or f"{name} {example}"
        else:
            continue
        break
    else:
        what = f"none of its {broken:,} records to train on can be used: {first}" if broken else "there is no record"
        if "has no field" in what and not recipe.columns and re.search(r"\.(tsv|csv)\b", first):
            what += "; --columns=NAME,NAME,... names those of a file without a header"
        raise UserError(f"source {recipe.source}: {what}{' to train on in it' * (not broken)}")
    said = (e.split for p in parts for _, e in examples(recipe, p) if recipe.split and isinstance(e, Example))
    if not recipe.valid or any(p.split == "valid" for p in parts) or "valid" in said:
        return parts, HeldOut()
    trained = (e.key for _, e in examples(recipe, part) if isinstance(e, Example) and e.split == "train")
    return parts, HeldOut(recipe.valid, min(itertools.islice(trained, _SURVEYED)))


def _sample(recipe, parts, held_out):
    """Texts to learn a vocabulary from: of training examples, part after part in an order of hashes, to a bound."""
    budget = max(1 << 20, SAMPLE_PER_ID * int(recipe.tokenizer.partition(":")[2]))
    most = budget // min(len(parts), 16)
    for part in sorted(parts, key=lambda p: hash_of(f"{p.name}@{p.start}")):
        left = most
        for _, example in examples(recipe, part):
            if isinstance(example, Example) and held_out(example) == "train":
                for text in filter(None, (example.input, example.target)):
                    yield text
                    left, budget = left - len(text), budget - len(text)
            if left <= 0 or budget <= 0:
                break
        if budget <= 0:
            return


def _job(recipe, parts, held_out, plan, out, job, jobs):
    """Writes the shards of one job, then its record, and returns the record."""
    out = pathlib.Path(out)
    tokenizer = load_tokenizer(out / "tokenizer")
    broken = {"records": 0, "first": [], "of": {}}  # of: split of parts -> [number, one]
    shards = {s: _Examples(out / shard_name(s, job, jobs), tokenizer, plan["dtype"], recipe) for s in SPLITS}
    with errors_as_user_errors(out), contextlib.ExitStack() as stack:
        for shard in shards.values():
            stack.callback(shard.aside.unlink, missing_ok=True)
        for part in parts:
            of = broken["of"].setdefault(part.split, [0, ""])
            for name, example in examples(recipe, part):
                if isinstance(example, Example):
                    shards[held_out(example)].add(example)
                else:
                    broken["records"], of[:] = broken["records"] + 1, [of[0] + 1, of[1] or f"{name} {example}"]
                    if len(broken["first"]) < NAMED:
                        broken["first"].append(f"{name} {example}")
        record = {"plan": digest(plan), "broken": broken, **{s: shard.close() for s, shard in shards.items()}}
        write_json(out / record_name(job, jobs), record)
    return record


def _meta(plan, records):
    """meta.json: the plan, the shards of every job, the classes by name, and sums of what the jobs counted."""
    shards, counts, seen = {}, {}, {}
    for split in SPLITS:
        parts = [r[split] for r in records]
        shards[split] = [
            {"file": p["file"], "records": p["counts"]["records"], "bytes": p["bytes"], "sha256": p["sha256"]}
            for p in parts
            if p["file"]
        ]
        tables_of = {name: collections.Counter() for name in ("classes", *LENGTHS)}
        for p in parts:
            for name, total in tables_of.items():
                total.update(p["counts"].pop(name))
        merge = lambda name: (max if name.startswith("longest") else sum)(p["counts"].get(name, 0) for p in parts)
        counts[split] = {name: merge(name) for name in parts[0]["counts"]}
        counts[split] |= {name: dict(sorted(total.items())) for name, total in tables_of.items()}
        seen[split] = set(tables_of["classes"])
    # Records that were held out by a hash are of the training data; a split that was given has to keep to its labels.
    classes = seen["train"] | (seen["valid"] if plan["held_out"] != HeldOut().described else set())
    number = all(re.fullmatch(r"-?[0-9]+", c) for c in classes)
    classes = sorted(classes, key=(lambda c: (int(c), c)) if number else None)
    first = [name for r in records for name in r["broken"]["first"]][:NAMED]
    broken = {"records": sum(r["broken"]["records"] for r in records), "first": first}
    identity = [plan["tokenizer"], plan["dtype"], classes, shards]
    return {
        **plan,
        "fingerprint": digest(identity),
        "classes": classes,
        "counts": counts,
        "broken": broken,
        "nothing_in": _nothing_in(plan, records, counts),
        "shards": shards,
    }


def _nothing_in(plan, records, counts):
    """{split: why} of the splits that have files and no record to use, where files say the split."""
    found = {}
    for of in (r["broken"].get("of", {}) for r in records):
        for split, (count, first) in of.items():
            before = found.get(split, [0, ""])
            found[split] = [before[0] + count, before[1] or first]
    why = lambda split, count, first: (
        f"none of its {count:,} {split} records can be used: {first}" if count else f"its {split} files hold no record"
    )
    by_files = not plan["settings"]["split"]
    return {split: why(split, *of) for split, of in found.items() if by_files and not counts[split]["records"]}


def _complaint(recipe, meta):
    """What is wrong with records that cannot be trained on; None if nothing is."""
    seen, broken = collections.Counter(), meta["broken"]
    if not meta["counts"]["train"]["records"]:
        held = meta["counts"]["valid"]["records"]
        alike = " (those of one group or one input stay together)" if held > 1 else ""
        rest = f"; {broken['records']:,} cannot be used: {broken['first'][0]}" if broken["records"] else ""
        return f"all of its {held:,} records that can be used are held out{alike}: add some, or set valid to 0{rest}"
    for split in ("train", "valid"):
        seen.update(meta["counts"][split]["classes"])
    for why in (why for split, why in meta["nothing_in"].items() if split != "train"):
        return f"{why}: mend their files, or leave them out (exclude)"
    if wrong := unknown.complaint(meta, recipe.tokenizer, "input_tokens", "target_tokens"):
        return wrong
    if recipe.label_kind == "class" and (found := no_classes(seen, seen.total())):
        return f"its labels in {recipe.label!r} are {found}, which are no classes: {tables.REAL}"
    if broken["records"] > 0.1 * seen.total() and (
        real := next((n for n in broken["first"] if tables.REAL in n), None)
    ):
        return f"{broken['records']:,} of its records cannot be used, such as {real}"
    for split in ("valid", "test"):
        if strange := sorted(set(meta["counts"][split]["classes"]) - set(meta["classes"])):
            shown = ", ".join(map(repr, strange[:3])) + ", ..." * (len(strange) > 3)
            if recipe.label_kind == "class" and any("," in name for name in strange):
                shown += "; if they are several with commas between, set label_kind to 'classes'"
            return (
                f"its {split} records have {len(strange)} label{'s' * (len(strange) > 1)} in {recipe.label!r} that no "
                f"training record has ({shown}): correct them, or add training records of that label"
            )
    return None


def summary(meta):
    """A few lines for a person: what was read, and what was left out."""
    asked = meta["settings"]
    said = [f"{name} {asked[name]}" for name in ("input", "target", "label", "split", "group") if asked[name]]
    lines = [*told_of_source(meta), f"fields     {', '.join(said)}"]
    lines.append(f"tokenizer  {meta['settings']['tokenizer']}: {meta['vocab_size']:,} ids")
    lines += unknown.told(meta, "input_tokens", "target_tokens")
    for split in SPLITS:
        c = meta["counts"][split]
        if c["records"]:
            lines.append(
                f"{split:10} {c['records']:,} records, {c['input_tokens']:,} tokens of input (the longest "
                f"{c['longest_input']:,}), {c['target_tokens']:,} of target (the longest {c['longest_target']:,})"
            )
    empty = sum(meta["counts"][split]["target_lengths"].get("0", 0) for split in ("train", "valid"))
    if asked["target"] and empty:  # of a csv file a cell that nobody filled
        lines.append(f"warning    {empty:,} of these have an empty target: if it is not known, leave them out")
    if joined := sum(meta["counts"][split].get("joined", 0) for split in SPLITS):  # as several references of a summary
        lines.append(
            f"warning    {joined:,} of these have lists of several texts, joined by ', ': {{name.0}} is the first, and "
            "TextScores.references names true texts that a score takes the best of"
        )
    if meta["classes"]:
        shown = ", ".join(meta["classes"][:10]) + ", ..." * (len(meta["classes"]) > 10)
        lines.append(f"label      {asked['label']}: {len(meta['classes']):,} classes ({shown})")
        whole = set(meta["classes"])
        several = [c for c in whole if "," in c and whole.issuperset(part.strip() for part in c.split(","))]
        if several and asked["label_kind"] == "class":
            lines.append(
                f"warning    {len(several):,} of them are others with commas between ({min(several)!r}): if a record "
                "may be of several classes, set label_kind to 'classes'"
            )
        train = meta["counts"]["train"]
        if len(whole) > 1 and all(train["classes"].get(name) == train["records"] for name in whole):
            lines.append(
                "warning    every record is of all classes: there is nothing to tell apart; if lists have a place for "
                "each class, name those that hold"
            )
        if len(whole) == 1:
            lines.append(
                f"warning    all labels are {meta['classes'][0]!r}: of one class there is nothing to tell apart"
            )
        if (numbers := [c for c in meta["classes"] if re.fullmatch(r"-?[0-9]+", c)]) and len(numbers) < len(whole):
            lines.append(
                f"warning    the labels {few(numbers, 3)} are numbers and {few(sorted(whole - {*numbers}), 3)} are "
                "none: if a number stands for a name, write that name"
            )
        for form, what in ((str.casefold, "in case"), (_number, "in how a number is written")):
            alike = collections.defaultdict(list)
            for name in meta["classes"]:
                alike[form(name)].append(name)
            if same := [repr(name) for names in alike.values() if len(names) > 1 for name in names]:
                lines.append(f"warning    {few(same)} differ {what} alone: if they mean one class, write them alike")
        if none := [repr(name) for name in meta["classes"] if name.casefold() in _NONE]:
            lines.append(
                f"warning    {few(none)} are classes like others: if that stands for no label, leave its cell empty"
            )
    if n := meta["broken"]["records"]:
        more = f"; and {n - len(meta['broken']['first']):,} more" if n > len(meta["broken"]["first"]) else ""
        lines.append(f"left out   {n:,} broken records: {'; '.join(meta['broken']['first'])}{more}")
    return "\n".join(lines)


def _number(name):
    """One value for 1, 01 and 1.0, as spreadsheets and the pandas library make them."""
    return float(name) if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", name) else name


RECORDS = Kind("records", _listing, _split, _sample, _job, _meta, _complaint, summary, guess.complete)
