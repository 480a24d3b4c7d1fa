"""Documents become shards of token windows, by several processes, with the same bytes however many there are.

The pieces of a source are dealt to jobs by size alone; a job reads its pieces, tokenises their documents, joins them
with eos between, cuts windows and writes one train and one valid shard. Files appear under their own names only when
they are whole (written aside, synced, renamed); a job's record of size and SHA-256 follows them, meta.json follows all.
So a preparation that was interrupted goes on where it was when it is run again, and never takes a part for the whole.
"""

import concurrent.futures.process
import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from paradigm.dataset import serve_parent
from paradigm.errors import UserError
from paradigm.records import hash_of
from paradigm.storage import commit, expand, here
from t5like import sources, unknown
from t5like.held_out import split_text
from t5like.shards import (
    Interrupted,
    Shard,
    digest,
    errors_as_user_errors,
    finished,
    is_whole,
    record_name,
    shard_name,
    write_json,
)
from t5like.tokenizers import get_tokenizer, is_learnt, load_tokenizer
from t5like.windows import FORMATS, META, encode_window, padding, read_meta

PLAN = "plan.json"  # what an unfinished directory is going to be
JOB_BYTES = 2 << 20  # of text, at least; a large corpus has about JOBS jobs
JOBS = 1024
SAMPLE_PER_ID = 256  # bytes of text for each id of a vocabulary to be learnt


class Kind(NamedTuple):
    """What a preparation makes of a source: windows (below) or records with fields (prepare_records.py)."""

    name: str  # windows or records
    listing: Callable  # recipe -> Listing
    split: Callable  # (recipe, listing) -> (pieces to read, what is held out)
    sample: Callable  # (recipe, pieces, held out) -> texts to learn a vocabulary from
    job: Callable  # writes the shards of one job and then its record; see _job
    meta: Callable  # (plan, records of the jobs) -> meta.json
    complaint: Callable  # (recipe, meta) -> what is wrong with it, or None
    summary: Callable  # meta -> a few lines for a person
    complete: Callable = lambda recipe: recipe  # recipe -> one that leaves nothing open


def prepare(recipe, out, workers=None, progress=True, kind=None, engine=None):
    """Makes `out` the prepared directory of a recipe, unless it is that already; returns its meta.

    recipe: a TextData with a window, or with its Kind a TextRecords. workers: processes, None for one a core; the
    result does not depend on it. progress: a bar and a summary on stderr. kind: None for windows. engine: a function of
    a job and a list of its arguments that runs it with each, on other machines (launch/run/beam.py); None for processes
    of this one. The result does not depend on it either.

    Raises UserError, and leaves what was there as it was, if `out` holds other data; also for text that cannot be used
    and for a full or unwritable disk.
    """
    kind, out = kind or WINDOWS, here(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a directory for what is prepared")
    if kind is WINDOWS and recipe.window is None:
        raise UserError(
            "window is not set, and no objective that reads windows of text says it: give the tokens a window (568 for "
            "span corruption with 512 inputs)"
        )
    recipe = kind.complete(recipe)
    settings = recipe.settings
    if (out / META).exists():
        _same_settings(out, read_meta(out, kind.name)["settings"], settings)
    listing = kind.listing(recipe)
    if (out / META).exists():
        meta = read_meta(out, kind.name)
        _same_source(out, meta, recipe, listing)
        if all(is_whole(out, shard) for split in meta["shards"].values() for shard in split):
            if progress:
                print(f"{out} is whole already\n{kind.summary(meta)}", file=sys.stderr)
            return meta
    pieces, held_out = kind.split(recipe, listing)
    jobs = _deal(pieces)
    with errors_as_user_errors(out), _own(out):
        (out / META).unlink(missing_ok=True)
        texts = lambda: kind.sample(recipe, pieces, held_out)
        plan = _plan(recipe, settings, listing, held_out, texts, FORMATS[kind.name], out, progress)
        leftovers = lambda: [out / PLAN, *out.glob("done-*"), *out.glob("*.array_record.*")]
        try:
            records = _run(kind.job, recipe, jobs, held_out, plan, out, workers, progress, engine)
        except UserError as error:
            for leftover in [] if isinstance(error, Interrupted) else leftovers():  # mended, it is another corpus
                leftover.unlink(missing_ok=True)
            raise
        meta = kind.meta(plan, records)
        complaint = kind.complaint(recipe, meta)
        if not complaint:
            write_json(out / META, meta)
        for leftover in leftovers():
            leftover.unlink()
        if complaint:
            raise UserError(f"source {recipe.source}: {complaint}")
    if progress:
        print(kind.summary(meta), file=sys.stderr)
    return meta


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


def told_of_source(meta):
    """The lines of a summary that say what was read, and what was left out."""
    source = meta["source"]
    yield f"source     {source['described']}"
    if source.get("read"):
        yield f"read       {source['read']}"
    if source.get("left"):
        yield f"left out   {source['left']}"


# ------------------------------------------------------------------------------------------------------------- the plan


def _plan(recipe, settings, listing, held_out, texts, form, out, progress):
    """plan.json, made or read again: settings, fingerprints and the tokenizer that all jobs use."""
    path = out / PLAN
    split = digest(dataclasses.asdict(held_out))
    if path.exists() and any(out.glob("done-*")):  # else nothing is lost by starting over
        plan = json.loads(path.read_text())
        _same_settings(out, plan["settings"], settings)
        _same_source(out, plan, recipe, listing)
        if plan.get("split") == split:  # an earlier version may have held other text out
            return plan
    if progress and is_learnt(recipe.tokenizer):
        print(f"learning a vocabulary ({recipe.tokenizer}) ...", file=sys.stderr)
    tokenizer = get_tokenizer(recipe.tokenizer, texts, recipe.extra_ids, recipe.specials)
    for leftover in ("tokenizer.tmp", "tokenizer"):
        shutil.rmtree(out / leftover, ignore_errors=True)
    for leftover in out.glob("*.array_record*"):
        leftover.unlink()
    tokenizer.save(out / "tokenizer.tmp")
    commit(out / "tokenizer.tmp", out / "tokenizer")
    v = tokenizer.vocabulary
    highest = max(v.text_ranges[-1][1] - 1, v.end, v.unk or 0, padding(v) or 0)
    plan = {
        "format": form,
        "settings": settings,
        "source": {
            "described": listing.described,
            "fingerprint": listing.fingerprint,
            "read": listing.read,
            "left": listing.left,
            "named": all(getattr(p, "single", True) for p in listing.pieces),
        },
        "held_out": held_out.described,
        **({"splits": held_out.note} if held_out.note else {}),
        "split": split,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "dtype": "<u1" if highest < 1 << 8 else "<u2" if highest < 1 << 16 else "<u4",
    }
    write_json(path, plan)
    return plan


def _deal(pieces):
    """Pieces in order, cut into jobs of about equal size: a function of the pieces alone."""
    size = max(JOB_BYTES, sum(p.size for p in pieces) // JOBS)
    jobs, room = [[]], size
    for piece in pieces:
        if jobs[-1] and piece.size > room:
            jobs.append([])
            room = size
        jobs[-1].append(piece)
        room -= piece.size
    return jobs


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


# ----------------------------------------------------------------------------------------------------------------- jobs


def _run(work, recipe, jobs, held_out, plan, out, workers, progress, engine=None):
    """Each job's record, in order; those that an earlier run finished are checked and taken over."""
    records = [finished(j, len(jobs), plan, out) for j in range(len(jobs))]
    todo = [j for j, record in enumerate(records) if record is None]
    workers = min(workers or os.cpu_count() or 1, len(todo))
    sizes = [sum(p.size for p in job) for job in jobs]
    arguments = [(recipe, jobs[j], held_out, plan, str(out), j, len(jobs)) for j in todo]
    if engine is not None and todo:
        engine(work, arguments)
        records = [record or finished(j, len(jobs), plan, out) for j, record in enumerate(records)]
        if lost := records.count(None):
            raise UserError(
                f"{lost} of {len(jobs)} jobs were done and left nothing in {out}: give a directory that all workers "
                "see under this path, as on NFS"
            )
        return records
    if progress and todo and not sys.stderr.isatty():  # where a bar that redraws itself makes a log unreadable
        print(f"preparing {sum(sizes):,} bytes in {len(todo)} jobs by {workers} processes", file=sys.stderr, flush=True)
    with contextlib.ExitStack() as stack:
        if workers > 1:  # spawned: the caller may hold the threads of a jax backend
            context = multiprocessing.get_context("spawn")
            # After Ctrl-C the jobs in hand are finished and no more are begun.
            pool = concurrent.futures.ProcessPoolExecutor(workers, context, serve_parent)
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            futures = {pool.submit(work, *a): j for a, j in zip(arguments, todo)}
            done = ((futures[f], f.result) for f in concurrent.futures.as_completed(futures))
        else:
            done = ((j, lambda a=a: work(*a)) for a, j in zip(arguments, todo))
        bar = stack.enter_context(
            tqdm(
                total=sum(sizes),
                unit="B",
                unit_scale=True,
                desc="preparing",
                leave=False,
                disable=None if progress else True,  # None: where there is no terminal
                initial=sum(sizes) - sum(sizes[j] for j in todo),
            )
        )
        for j, result in done:
            records[j] = result()
            bar.update(sizes[j])
    return records


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
    return None


def _listing(recipe):
    return sources.list_pieces(recipe.source, recipe.field, recipe.extensions)


WINDOWS = Kind("windows", _listing, split_text, _sample, _job, _meta, _too_little, summary)


# ---------------------------------------------------------------------------------------------------------------- files


def same_corpus(out, recipe, kind=None):
    """UserError unless a prepared directory is of this recipe: of its settings, and of its source or one like it.

    The source need not be there any more if its name is; under another name its content is what counts.
    """
    kind = kind or WINDOWS
    meta = read_meta(out, kind.name)
    _same_settings(out, meta["settings"], recipe.settings)
    if expand(meta["settings"]["source"]).absolute() != expand(recipe.source).absolute():
        _same_source(out, meta, recipe, kind.listing(recipe))


def _same_settings(out, there, wanted):
    """UserError with the differences unless a directory was made with these settings, but for the source's name."""
    changed = [
        f"{k}={there.get(k)!r} there, {wanted[k]!r} now" for k in wanted if there.get(k) != wanted[k] and k != "source"
    ]
    if changed:
        raise UserError(f"{out} holds another corpus ({'; '.join(changed)}): give another directory, or delete it")


def _same_source(out, plan, recipe, listing):
    if plan["source"]["fingerprint"] != listing.fingerprint:
        was, then = plan["settings"]["source"], plan["source"]["described"]
        what = "that has changed" if was == recipe.source else f"{recipe.source} holds something else"
        raise UserError(
            f"{out} was made from {was} as it was then, and {what} (then: {then}): give another directory, or delete it"
        )


@contextlib.contextmanager
def _own(out):
    """Makes `out`, sees that nobody else's files are in it, and keeps other preparations away until done."""
    out.mkdir(parents=True, exist_ok=True)
    ours = (META, PLAN, "tokenizer", "done-", "train-", "valid-", "test-", ".lock")
    if strange := sorted(n for n in os.listdir(out) if not n.startswith(ours)):
        raise UserError(
            f"{out} holds other files ({', '.join(strange[:3])}), no prepared corpus: give another directory"
        )
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system drops it with the process
        except BlockingIOError:
            raise UserError(f"{out} is being prepared by another process: wait, or give another directory") from None
        yield
