"""Which checkpoints a directory has, and which of them is taken: the newest that is whole, the best, or one step.

Only manifests are read, and the files that they name hashed; the arrays are checkpoint.py's.
"""

import contextlib
import fnmatch
import logging
import math

import jax
import numpy as np

from launch.storage import filesystem, manifest
from paradigm.errors import UserError

_log = logging.getLogger(__name__)


class Catalogue:
    """The numbered directories of one run.

    Args:
        directory: where they are, a path or a URL.
        best_by: (metric, mode "min" or "max"): a step without the metric, or where it is not finite, is never the best.
            A metric of None: the newest checkpoint knows it.

    Raises:
        UserError: the directory has a name under which Orbax neither writes nor reads.
    """

    def __init__(self, directory, best_by=(None, "min")):
        directory = filesystem.as_path(directory)
        self._store = filesystem.of(directory)
        self.directory = self._store.absolute(directory)
        if odd := [part for part in self.directory.parts if "\\" in part or not fnmatch.fnmatchcase(part, part)]:
            raise UserError(  # Orbax takes the name for a pattern, finds nothing to merge, and says that it has saved
                f"{self.directory}: checkpoints below a directory with brackets or a backslash in its name, "
                f"'{odd[0]}', are not written whole, nor read: take another directory, or rename it"
            )
        self._best_by = best_by
        self._verified, self._damaged = set(), set()

    def steps(self):
        """Steps whose manifest is readable, ascending. Cheap: the arrays are not looked at."""
        return list(self._manifests())

    def best_step(self):
        """The step that `best_metric` prefers, the later of equals; None when no checkpoint has that metric."""
        return next(iter(self._ranked(self._manifests())), None)

    def find(self, step=None):
        """The step of a checkpoint whose every byte was verified, or None when there is no checkpoint at all.

        Args:
            step: None for the newest that is whole, "best" for the best that is whole, or one step.

        Raises:
            UserError: no such step; or there are checkpoints and none is whole; or one is of a newer format.
        """
        return self._agreed(lambda: self._choose(step))

    def beyond(self, step):
        """The newest whole step where it lies after `step`, else None. Hashes nothing while no checkpoint says so.

        Raises:
            UserError: as `find`.
        """

        def choose():
            return self._choose(None) if max(self.steps(), default=0) > step else None

        found = self._agreed(choose)
        return found if found is not None and found > step else None

    def meta(self, step):
        """(meta, metrics) of a step that `find` or `steps` named."""
        facts = manifest.read(self.directory / str(step))
        return facts["meta"], facts["metrics"]

    def digest(self, step):
        """The digest of a step's manifest, which names every byte of it."""
        return manifest.digest(manifest.read(self.directory / str(step)))

    def needed(self, found):
        """What `restore` or `arrays` found. Raises UserError where that is None: nothing was saved yet."""
        if found is None:
            raise UserError(f"{self.directory}: there is no checkpoint yet; train until the first save")
        return found

    def _agreed(self, choose):
        """What choose() gives in process 0, a step or None, in all processes; the UserError that it raises too."""
        if jax.process_count() == 1:
            return choose()
        from jax.experimental import multihost_utils

        failure, chosen = None, -1
        if jax.process_index() == 0:
            try:
                found = choose()
                chosen = -1 if found is None else found
            except UserError as error:
                failure, chosen = error, -2
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
        if chosen == -2:
            raise failure or UserError(f"{self.directory}: no checkpoint can be used; process 0 says why")
        return None if chosen == -1 else chosen

    def _manifests(self):
        """{step: what its manifest says}, ascending, of those that are readable."""
        found = {}
        with filesystem.explained(self.directory):
            for step in self._store.steps(self.directory):
                with contextlib.suppress(manifest.Damaged):
                    found[step] = manifest.read(self.directory / str(step))
        return found

    def _ranked(self, saved):
        """Steps that have the metric, best first, the later of equals first."""
        metric, mode = self._by(saved)
        scores = {step: facts["metrics"].get(metric) for step, facts in saved.items()}
        usable = [step for step, score in scores.items() if score is not None and math.isfinite(score)]
        return sorted(usable, key=lambda step: (scores[step] if mode == "min" else -scores[step], -step))

    def _by(self, saved):
        """(metric, mode): this object's, or the newest checkpoint's."""
        return saved[max(saved)]["best_by"] if saved and self._best_by[0] is None else self._best_by

    def _choose(self, step):
        with filesystem.explained(self.directory):
            return self._chosen(step)

    def _chosen(self, step):
        present = self._store.steps(self.directory)
        if not present and step is None:
            return None
        if step is None:
            candidates = present[::-1]
        elif step == "best":
            candidates = self._ranked(self._manifests())
        else:
            candidates = [step] if step in present else []
        if not candidates:
            metric = self._by(self._manifests())[0]
            which = f"has {metric!r}, so none is the best" if step == "best" else f"is of step {step}"
            raise UserError(f"{self.directory}: none of the checkpoints {present} {which}")
        damage = {}
        for candidate in candidates:
            path = self.directory / str(candidate)
            try:
                if candidate not in self._verified:
                    manifest.verify(path)
            except manifest.Damaged as why:
                if candidate in self._store.steps(self.directory):  # else the writer removed it while we read
                    damage[candidate] = why
                continue
            self._verified.add(candidate)
            if damage:
                self._damaged |= damage.keys()
                _log.warning("%s: %s; using checkpoint %d instead", self.directory, _list(damage), candidate)
            return candidate
        way_out = f"choose another of {present}"
        if step is None:
            way_out = "a run never starts over by itself: put back a copy, or begin in a new directory"
        raise UserError(f"{self.directory}: {_list(damage)}; {way_out}")


def _list(damage):
    return "; ".join(f"checkpoint {step} is damaged: {why}" for step, why in damage.items())
