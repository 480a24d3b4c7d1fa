"""Text becomes windows of tokens: documents joined with eos between, and cut. How that is shared out: prepare.py."""

import contextlib
import pathlib

import numpy as np

from paradigm.errors import UserError
from paradigm.records import hash_of
from t5like import sources, unknown
from t5like.held_out import split_text
from t5like.prepare import SAMPLE_PER_ID, Kind, told_of_source
from t5like.shards import Shard, digest, errors_as_user_errors, record_name, shard_name, write_json
from t5like.tokenizers import load_tokenizer
from t5like.windows import encode_window, padding


def _listing(recipe):
    return sources.list_pieces(recipe.source, recipe.field, recipe.extensions)


def _complete(recipe):
    if recipe.window is None:
        raise UserError(
            "window is not set, and no objective that reads windows of text says it: give the tokens a window (568 for "
            "span corruption with 512 inputs)"
        )
    return recipe


def _sample(recipe, pieces, held_out):
    """Training text to learn a vocabulary from: heads of documents, by the order of their names' hashes, to a bound."""
    budget = max(1 << 20, SAMPLE_PER_ID * int(recipe.tokenizer.partition(":")[2]))
    most = budget // min(len(pieces), 16)
    for piece in sorted(pieces, key=lambda p: hash_of(p.name)):
        left = most
        for name, raw in sources.read(piece):
            raw = raw[: held_out(piece, name, raw)]
            if not raw:
                continue
            head = raw if len(raw) <= left else raw[: sources.cut_at(raw, left)]
            yield sources.decode(name, head, recipe.invalid_utf8)[0]
            left, budget = left - len(raw), budget - len(head)
            if left <= 0:
                break
        if budget <= 0:
            return


def _job(recipe, pieces, held_out, plan, out, job, jobs):
    """Writes the shards of one job, then its record, and returns the record."""
    out = pathlib.Path(out)
    tokenizer = load_tokenizer(out / "tokenizer")
    v = tokenizer.vocabulary
    bad, without = {"documents": 0, "bytes": 0, "first": None}, []
    shards = {
        s: _Windows(out / shard_name(s, job, jobs), recipe.window, plan["dtype"], padding(v))
        for s in ("train", "valid")
    }
    with errors_as_user_errors(out), contextlib.ExitStack() as stack:
        for shard in shards.values():
            stack.callback(shard.aside.unlink, missing_ok=True)
        for piece in pieces:
            for name, raw in sources.read(piece, without):
                cut = held_out(piece, name, raw)
                for split, part in (("train", raw[:cut]), ("valid", raw[cut:])):
                    text, replaced = sources.decode(sources.place(piece, name), part, recipe.invalid_utf8)
                    if replaced:
                        bad["documents"], bad["bytes"] = bad["documents"] + 1, bad["bytes"] + replaced
                        bad["first"] = bad["first"] or name
                    if text:
                        ids = tokenizer.encode(text)
                        shards[split].add(np.append(ids, np.int32(v.end)), len(part), unknown.count_in(ids, v))
        written = {s: shard.close() for s, shard in shards.items()}
        record = {"plan": digest(plan), "invalid_utf8": bad, **_told_without(without), **written}
        write_json(out / record_name(job, jobs), record)
    return record


def _told_without(names):
    """Of records without a text, for a job's record and for meta.json; nothing of none."""
    return {"without": {"records": len(names), "first": names[0]}} if names else {}


class _Windows(Shard):
    """Joins documents, cuts them into windows and writes them."""

    def __init__(self, path, window, dtype, pad):
        super().__init__(path, documents=0, bytes=0, tokens=0, windows=0, padding=0, unknown=0)
        self.window, self.dtype, self.pad = window, dtype, pad
        self.tokens, self.starts = np.zeros(0, np.int32), np.zeros(0, np.int64)  # not yet written

    def add(self, tokens, text_bytes, unknown):
        self.starts = np.append(self.starts, len(self.tokens))
        self.tokens = np.concatenate([self.tokens, tokens])
        self.counts["documents"] += 1
        self.counts["bytes"] += text_bytes
        self.counts["tokens"] += len(tokens)
        self.counts["unknown"] += unknown
        whole = len(self.tokens) // self.window * self.window
        for begin in range(0, whole, self.window):
            self._cut(begin, begin + self.window)
        self.tokens, self.starts = self.tokens[whole:], self.starts[self.starts >= whole] - whole

    def _cut(self, begin, end):
        inside = self.starts[(self.starts > begin) & (self.starts < end)] - begin
        self.write(encode_window(self.tokens[begin:end], inside, self.window, self.dtype, self.pad))
        self.counts["windows"] += 1

    def close(self):
        """As of a Shard; what is left is a window with padding."""
        if len(self.tokens):
            self.counts["padding"] = self.window - len(self.tokens)
            self._cut(0, len(self.tokens))
        return super().close()


def _meta(plan, records):
    """meta.json: the plan, the shards of every job, and sums of what the jobs counted."""
    shards, counts = {}, {}
    for split in ("train", "valid"):
        parts = [r[split] for r in records]
        shards[split] = [
            {"file": p["file"], "windows": p["counts"]["windows"], "bytes": p["bytes"], "sha256": p["sha256"]}
            for p in parts
            if p["file"]
        ]
        counts[split] = {k: sum(p["counts"].get(k, 0) for p in parts) for k in parts[0]["counts"]}
    bad = [r["invalid_utf8"] for r in records]
    bad = {
        "documents": sum(b["documents"] for b in bad),
        "bytes": sum(b["bytes"] for b in bad),
        "first": next((b["first"] for b in bad if b["first"]), None),
    }
    without = [r["without"] for r in records if "without" in r]
    told = {"without": {"records": sum(w["records"] for w in without), "first": without[0]["first"]}} if without else {}
    identity = [plan["tokenizer"], plan["dtype"], plan["settings"]["window"], shards]
    return {**plan, "fingerprint": digest(identity), "counts": counts, "invalid_utf8": bad, **told, "shards": shards}


def _too_little(recipe, meta):
    """What is wrong with a corpus that cannot be trained or evaluated on; None if nothing is."""
    train, valid = meta["counts"]["train"], meta["counts"]["valid"]
    if not train["tokens"] + valid["tokens"]:
        if n := meta.get("without", {}).get("records", 0):
            return f"all of its {n:,} records have null for a text"
        return "it is empty: there is no text in it"
    if wrong := unknown.complaint(meta, recipe.tokenizer, "tokens"):
        return wrong
    if recipe.valid_glob and not train["documents"]:
        return f"valid_glob={recipe.valid_glob!r} holds out all of it: name fewer files"
    if train["tokens"] < recipe.window:
        return (
            f"{train['documents']} training documents hold {train['tokens']} tokens, fewer than one window of "
            f"{recipe.window}: shorten the sequence, or give more text"
        )
    if recipe.valid_glob and not valid["documents"]:
        return f"no document matches valid_glob={recipe.valid_glob!r}"
    if recipe.valid and not recipe.valid_glob and not valid["tokens"]:
        return f"valid={recipe.valid:g} holds out nothing of {train['bytes']:,} bytes: raise it, or set it to 0"
    return None


def summary(meta):
    """A few lines for a person: what was read, and what became of it."""
    lines = [*told_of_source(meta)]
    if not meta["source"].get("named", True):
        lines.append(f"text       of records: their field {meta['settings']['field']!r}")
    lines.append(f"tokenizer  {meta['settings']['tokenizer']}: {meta['vocab_size']:,} ids")
    for split in ("train", "valid"):
        c = meta["counts"][split]
        if c["windows"]:
            lines.append(
                f"{split:10} {c['documents']:,} documents, {c['bytes']:,} bytes, {c['tokens']:,} tokens in "
                f"{c['windows']:,} windows of {meta['settings']['window']} ({c['bytes'] / c['tokens']:.2f} bytes a "
                f"token; {c['padding']:,} positions padded)"
            )
    train, valid = (meta["counts"][split]["bytes"] for split in ("train", "valid"))
    if valid and "held_out" in meta:
        lines.append(f"held out   {100 * valid / (train + valid):.2g} % of the bytes: {meta['held_out']}")
    if meta.get("splits"):
        lines.append(f"splits     {meta['splits']}")
    if n := meta.get("without", {}).get("records", 0):
        lines.append(f"left out   {n:,} records without a text, such as {meta['without']['first']}")
    lines += unknown.told(meta, "tokens")
    bad = meta["invalid_utf8"]
    if bad["bytes"]:
        lines.append(
            f"replaced   {bad['bytes']:,} bytes that are not UTF-8, in {bad['documents']:,} documents (the "
            f"first: {bad['first']})"
        )
    return "\n".join(lines)


WINDOWS = Kind("windows", _listing, split_text, _sample, _job, _meta, _too_little, summary, _complete)
