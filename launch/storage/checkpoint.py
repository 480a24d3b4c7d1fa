"""Checkpoints that are whole or are not there: asynchronous, atomic, checksummed, and complete in themselves.

    checkpoints/120/state/...       the arrays, as Orbax writes them
    checkpoints/120/manifest.json   size and sha256 of every file above, metrics, and `meta`, with which a run goes on
    checkpoints/130.tmp/...         being written, or interrupted; nobody ever reads it
    frozen/0/...                    the parameters that are not trained, alike; written once, and every checkpoint names
                                    the digest of its manifest

Orbax writes into N.tmp in the background. When it has committed, every file is flushed and hashed, the manifest is
written last, and a rename to N is the commit (in a bucket, which has no rename, the manifest: filesystem.py has both).
So an N with a manifest was once a whole checkpoint. If its manifest no longer agrees, it was damaged since (Orbax alone
would restore a flipped bit without a word): a warning names it, and the one before it is used. Shapes and dtypes are
compared before anything is restored, for Orbax casts silently. Which checkpoint is taken: catalogue.py.

The state is saved as nested dicts by the names of paradigm.trees, so a checkpoint depends on no Python class.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import threading
import time

import jax
import numpy as np

from launch.storage import filesystem, manifest
from launch.storage.catalogue import Catalogue
from paradigm import storage, trees
from paradigm.errors import UserError
from paradigm.storage import is_transient, retry

STATE = "state"
FROZEN = "frozen"  # of a state: what is not trained; and the directory beside the checkpoints where that is kept
LOST = 3  # so many saves in a row that transient errors lost end a run
MARGIN = 1 << 20  # bytes, for what Orbax writes beside the arrays

_log = logging.getLogger(__name__)


class Checkpoints(Catalogue):
    """The checkpoints of one run, in one directory. One process may write; any number may read meanwhile.

    Args:
        directory: where the numbered directories are, a path or a URL; created by the first save.
        keep: how many of the newest stay; the best one stays beside them.
        best_metric: which of the metrics given to `save` decides the best. A step without it, or where it is not
            finite, is never the best. A reader may leave it out: the newest checkpoint knows it.
        best_mode: "min" or "max" of best_metric.
        before_commit: called in process 0 when the arrays of a save are written; the save fails if it does.
    """

    def __init__(self, directory, keep=3, best_metric=None, best_mode="min", before_commit=lambda: None):
        if keep < 1:
            raise UserError(f"keep={keep}: at least the newest checkpoint must stay, set keep=1 or more")
        if best_mode not in ("min", "max"):
            raise UserError(f"best_mode={best_mode!r}: write 'min' or 'max'")
        super().__init__(directory, (best_metric, best_mode))
        self._keep, self._before_commit = keep, before_commit
        self._current = None  # the step that was restored or saved last: saving it again would change nothing
        self._thread, self._error, self._lost = None, None, 0
        self._frozen = None  # the Checkpoints of what is not trained, when there is some

    def save(self, step, state, meta, metrics=None):
        """Starts to save and returns; the buffers of `state` may be donated at once.

        An earlier save that is still being written is waited for. All processes call this.

        Args:
            step: how many steps `state` has behind it.
            state: any tree of arrays; what is below `frozen` is written once for all checkpoints.
            meta: a dict for JSON; what `restore` hands back. It should let a reader rebuild the objective.
            metrics: {name: float}, for choosing the best.

        Returns:
            Whether a save was started. It is not when this step was saved or restored last: its arrays are there, and
            new metrics, where given, are added to its manifest together with this `meta`.

        Raises:
            UserError: the previous save failed (disk full, for instance). What was committed before it stays. One that
                failed with a transient error is warned of, and this one takes its place; LOST in a row are raised.
        """
        self._settle()
        step = int(step)
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        facts = {"step": step, "best_by": self._best_by, "metrics": metrics, "meta": meta}
        facts = json.loads(json.dumps(facts))  # what cannot be written fails here, not in the background
        tree = _nested(state, _array)
        frozen = tree.pop(FROZEN, None)
        try:
            if frozen:
                self._beside.save(0, frozen, {})
            if step == self._current:
                if metrics and jax.process_index() == 0:
                    manifest.amend(self.directory / str(step), facts)
                return False
            if jax.process_index() == 0:
                needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) + MARGIN
                self._store.begin(self.directory, step, needed)
            path = self._store.unfinished(self.directory, step) / STATE
            retry(lambda: self._io.save(path, args=_orbax().args.PyTreeSave(tree), force=True))
        except Exception as error:
            if not storage.is_storage(error):
                raise
            raise self._failed(step, error) from error
        self._current = step
        self._thread = threading.Thread(target=self._commit, args=(step, facts), name=f"checkpoint-{step}")
        self._thread.start()
        return True

    def wait(self):
        """Returns when nothing is being written. Raises UserError if the last save failed; once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            self._current = None
            raise error

    def finish(self, *again):
        """`wait`; where a transient error lost the last save, `save(*again)` makes up for it (in a run of one process,
        for the others know nothing of it)."""
        while True:
            try:
                return self.wait()
            except UserError as error:
                self._lost_one(error, jax.process_count() == 1)
                time.sleep(storage.WAITS[self._lost])
                self.save(*again)

    def _settle(self):
        """`wait` before another save, which can make up for a transient error."""
        try:
            self.wait()
        except UserError as error:
            self._lost_one(error)

    def _lost_one(self, error, may_pass=True):
        """Warns of a save that was lost, or raises what another save cannot make up for."""
        self._lost += 1
        if not may_pass or not is_transient(error.__cause__) or self._lost >= LOST:
            raise error
        _log.warning("%s; trying again", error)

    def close(self):
        """Waits, raises what `wait` raises, and lets go of threads. Leaving a `with` block calls it."""
        try:
            self.wait()
        finally:
            if "_io" in self.__dict__:
                self.__dict__.pop("_io").close()
            if self._frozen is not None:
                self._frozen.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def find(self, step=None):
        """As Catalogue's, when nothing is being written any more."""
        self.wait()
        return super().find(step)

    def restore(self, abstract, step=None, without=()):
        """(state, meta) of the newest whole checkpoint, or of `step` as in `find`; None when there is no checkpoint.

        Args:
            abstract: tree of ShapeDtypeStructs with shardings (none: the first device); each leaf is read straight into
                its sharding, whatever mesh it was saved from.
            without: names of trees that are not read, ("opt_state",) for instance: their leaves are None.

        Raises:
            UserError: as `find`; or a leaf differs in name, shape or dtype, with the leaf, wanted and found.
        """
        found = self.find(step)
        if found is None:
            return None
        path = self.directory / str(found)
        abstract_leaves = {name: tree for name, tree in _nested(abstract).items() if name not in without}
        frozen = abstract_leaves.pop(FROZEN, None)
        shapes = {name: x for name, x in self._shapes(found).items() if name.split("/")[0] not in without}
        if "opt_state" in abstract_leaves and not any(name.startswith("opt_state/") for name in shapes):
            raise UserError(
                f"{path} holds no optimizer's state, and no run goes on from it: start a new one in another directory, "
                f"with --init_from={self.directory.parent}"
            )
        _compare(dict(trees.named_leaves(abstract_leaves)), shapes, path)
        leaves = self._placed(path, abstract_leaves)
        if frozen or self._digest_of_frozen(found):
            leaves |= {f"{FROZEN}/{n}": x for n, x in self._whole(found).placed(0, frozen or {}).items()}
        self._current = found
        return trees.named_map(lambda name, _: leaves.get(name), abstract), self.meta(found)[0]

    def placed(self, step, abstract):
        """{name: array} of a step's leaves, each read into its sharding. Raises UserError where they differ."""
        _compare(dict(trees.named_leaves(abstract)), self._shapes(step), self.directory / str(step))
        return self._placed(self.directory / str(step), abstract)

    def _placed(self, path, abstract):
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def how(x):
            sharding = getattr(x, "sharding", None) or here
            return _orbax().ArrayRestoreArgs(sharding=sharding, global_shape=x.shape, dtype=x.dtype)

        args = _orbax().args.PyTreeRestore(_nested(abstract), restore_args=_nested(abstract, how), partial_restore=True)
        return dict(trees.named_leaves(retry(lambda: self._io.restore(path / STATE, args=args))))

    def arrays(self, step=None, only=None):
        """(step, nested dict of numpy arrays, meta) without knowing the model; None when there is no checkpoint.

        Args:
            step: as in `find`.
            only: names of the trees to read, ("params",) for instance; None for all. `params` has the frozen ones too,
                unless "frozen" is named as well.
        """
        found = self.find(step)
        if found is None:
            return None
        shapes = {n: x for n, x in self._shapes(found).items() if only is None or n.split("/")[0] in only}
        item = trees.nested(shapes)
        how = jax.tree.map(lambda _: _orbax().RestoreArgs(restore_type=np.ndarray), item)
        args = _orbax().args.PyTreeRestore(item, restore_args=how, partial_restore=True)
        place = self.directory / str(found) / STATE
        tree = retry(lambda: self._io.restore(place, args=args)) if shapes else {}
        if self._digest_of_frozen(found) and (only is None or "params" in only):
            frozen = self._whole(found).arrays(0)[1]
            apart = only is not None and FROZEN in only
            tree |= {FROZEN: frozen} if apart else {"params": trees.merge(tree["params"], frozen)}
        return found, tree, self.meta(found)[0]

    @property
    def _beside(self):
        """The one checkpoint of what is not trained."""
        if self._frozen is None:
            self._frozen = Checkpoints(self.directory.parent / FROZEN, keep=1)
        return self._frozen

    def _digest_of_frozen(self, step):
        return manifest.read(self.directory / str(step)).get(FROZEN)

    def _whole(self, step):
        """The same, verified to be what the checkpoint of this step was made with. Raises UserError otherwise."""
        wanted, kept = self._digest_of_frozen(step), self._beside
        if kept.find() is None or kept.digest(0) != wanted:
            raise UserError(
                f"{kept.directory} is not what checkpoint {step} was made with (digest {str(wanted)[:12]}): put back "
                "the frozen parameters of this run"
            )
        kept.mark(0)
        return kept

    def mark(self, step):
        """Takes a step for the one saved last: saving it again changes nothing."""
        self._current = step

    @functools.cached_property
    def _io(self):
        # Weights do not compress, and bits that a decompressor might see flipped are seen by the manifest anyway.
        return _orbax().AsyncCheckpointer(_orbax().PyTreeCheckpointHandler(use_compression=False))

    def _shapes(self, step):
        """{name: ShapeDtypeStruct} of what a checkpoint holds."""
        tree = self._io.metadata(self.directory / str(step) / STATE).item_metadata.tree
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in trees.named_leaves(tree)}

    def _commit(self, step, facts):
        """In a thread: waits for Orbax, then commits what it wrote and removes what is no longer kept."""
        try:
            self._io.wait_until_finished()
            if self._frozen is not None:
                self._frozen.wait()
            if jax.process_index() == 0:
                if self._frozen is not None:
                    facts = {**facts, FROZEN: self._frozen.digest(0)}
                self._before_commit()
                manifest.write(self._store.unfinished(self.directory, step), facts)
                self._store.commit(self.directory, step)
                self._damaged.discard(step)
                self._verified.discard(step)
                self._prune(step)
            self._lost = 0
        except Exception as error:  # whatever it is, the next save or wait raises it
            self._error = self._failed(step, error)
            self._error.__cause__ = error

    def _failed(self, step, error):
        """The UserError for a save that did not happen; what it wrote is removed, for it may be what fills the disk."""
        with contextlib.suppress(Exception):  # it would raise the same error at every later call
            self.__dict__.pop("_io").close()
        older = []
        if jax.process_index() == 0:
            with contextlib.suppress(Exception):
                self._store.sweep(self.directory)
        with contextlib.suppress(UserError):  # a bucket out of reach
            older = self.steps()
        stays = f"the newest checkpoint is still step {older[-1]}" if older else "there is no checkpoint yet"
        return UserError(f"{self.directory}: saving step {step} failed: {filesystem.reason(error)}; {stays}")

    def _prune(self, newest):
        """Removes what neither `keep` nor the best protects. Steps after `newest` are another run's, and left alone."""
        saved = {s: facts for s, facts in self._manifests().items() if s <= newest}
        whole = {s: facts for s, facts in saved.items() if s not in self._damaged}
        for step in saved.keys() - {*list(whole)[-self._keep :], *self._ranked(whole)[:1]}:
            self._store.discard(self.directory, step)
        self._store.sweep(self.directory)


def tree_sha256(tree):
    """sha256 (hex) of a tree: for each leaf, in the order of names, its 'a/b/c', dtype, shape and bytes in C order."""
    digest = hashlib.sha256()
    for name, leaf in sorted(trees.named_leaves(tree)):
        array = np.asarray(leaf)
        digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _compare(wanted, found, where):
    """Raises UserError unless both have the same leaves with the same shapes and dtypes."""
    describe = lambda x: f"{tuple(x.shape)} {np.dtype(x.dtype).name}" if x is not None else "nothing"
    pairs = {name: (describe(wanted.get(name)), describe(found.get(name))) for name in {**wanted, **found}}
    problems = [f"{name}: wanted {a}, found {b}" for name, (a, b) in pairs.items() if a != b]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{where} is of another model: " + "; ".join(problems[:3]) + more)


def _nested(tree, fn=lambda x: x):
    """Any tree as nested dicts with fn(leaf) at the leaves."""
    return trees.nested({name: fn(leaf) for name, leaf in trees.named_leaves(tree)})


def _array(x):
    """A leaf as Orbax takes it; it copies what the caller could still write to."""
    return x if isinstance(x, jax.Array) else np.asarray(x)


@functools.cache
def _orbax():
    """The module, on first use: the import takes a third of a second."""
    import orbax.checkpoint as orbax
    from absl import logging as absl_logging

    # Every failure of Orbax reaches the caller as an exception; its log would repeat it with a traceback.
    absl_logging.get_absl_logger().addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)

    return orbax
