"""Documents or records become shards, by several processes, with the same bytes however many there are.

The pieces of a source are dealt to jobs by size alone; a job reads its pieces and writes a shard of each split, by the
recipe's Kind (prepare_windows.py, prepare_records.py). Files appear under their own names only when
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
import shutil
import sys
from collections.abc import Callable
from typing import NamedTuple

from tqdm import tqdm

from paradigm.dataset import serve_parent
from paradigm.errors import UserError
from paradigm.storage import commit, expand, here
from t5like.shards import (
    Interrupted,
    digest,
    errors_as_user_errors,
    finished,
    is_whole,
    write_json,
)
from t5like.tokenizers import get_tokenizer, is_learnt
from t5like.windows import FORMATS, META, padding, read_meta

PLAN = "plan.json"  # what an unfinished directory is going to be
JOB_BYTES = 2 << 20  # of text, at least; a large corpus has about JOBS jobs
JOBS = 1024
SAMPLE_PER_ID = 256  # bytes of text for each id of a vocabulary to be learnt


class Kind(NamedTuple):
    """What a preparation makes of a source: windows (prepare_windows.py), or records with fields
    (prepare_records.py)."""

    name: str  # windows or records
    listing: Callable  # recipe -> Listing
    split: Callable  # (recipe, listing) -> (pieces to read, what is held out)
    sample: Callable  # (recipe, pieces, held out) -> texts to learn a vocabulary from
    job: Callable  # writes the shards of one job and then its record
    meta: Callable  # (plan, records of the jobs) -> meta.json
    complaint: Callable  # (recipe, meta) -> what is wrong with it, or None
    summary: Callable  # meta -> a few lines for a person
    complete: Callable = lambda recipe: recipe  # recipe -> one that leaves nothing open


def prepare(recipe, out, workers=None, progress=True, kind=None, engine=None):
    """Makes `out` the prepared directory of a recipe, unless it is that already; returns its meta.

    recipe: a TextData with a window, or a TextRecords. workers: processes, None for one a core; the result does not
    depend on it. progress: a bar and a summary on stderr. kind: None is the recipe's. engine: a function of a job and a
    list of its arguments that runs it with each, on other machines (launch/run/beam.py); None for processes of this
    one. The result does not depend on it either.

    Raises UserError, and leaves what was there as it was, if `out` holds other data; also for text that cannot be used
    and for a full or unwritable disk.
    """
    kind, out = kind or recipe.kind, here(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a directory for what is prepared")
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


def told_of_source(meta):
    """The lines of a summary that say what was read, and what was left out."""
    source = meta["source"]
    yield f"source     {source['described']}"
    if source.get("read"):
        yield f"read       {source['read']}"
    if source.get("left"):
        yield f"left out   {source['left']}"
    if exclude := meta["settings"].get("exclude"):
        yield f"excluded   of these what matches {exclude}"


# ------------------------------------------------------------------------------------------------------------- the plan


def _plan(recipe, settings, listing, held_out, texts, form, out, progress):
    """plan.json, made or read again: settings, fingerprints and the tokenizer that all jobs use."""
    path = out / PLAN
    split = digest(dataclasses.asdict(held_out))
    if path.exists() and any(out.glob("done-*")):  # else nothing is lost by starting over
        try:
            plan = json.loads(path.read_bytes())
            plan["settings"], plan["source"]
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path} is damaged: delete {out}, and prepare again") from None
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


# ---------------------------------------------------------------------------------------------------------------- files


def same_corpus(out, recipe, kind=None):
    """UserError unless a prepared directory is of this recipe: of its settings, and of its source or one like it.

    The source need not be there any more if its name is; under another name its content is what counts.
    """
    kind = kind or recipe.kind
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
