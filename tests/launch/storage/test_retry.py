"""Storage that errs now and then does not end a run, and changes none of its numbers; storage that is full does."""

import collections
import errno
import io
import os
import pathlib

import jax
import numpy as np
import pytest

from launch.run import loop
from launch.storage.checkpoint import Checkpoints
from paradigm import dataset, storage
from paradigm.errors import UserError
from tests import contract, miniatures
from tests.launch import small


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(storage, "WAITS", (0.0, 0.0, 0.0))


def failing(call, errors, counts=lambda *args: True):
    """`call`, which raises the next of these errors (numbers) as long as there are any, where counts(*args)."""
    left = list(errors)

    def flaky(*args, **kwargs):
        if left and counts(*args):
            number = left.pop(0)
            raise OSError(number, os.strerror(number))
        return call(*args, **kwargs)

    flaky.left = left
    return flaky


def test_passing_errors_are_tried_again_and_others_are_not():
    assert storage.retry(failing(lambda: 7, [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])) == 7
    with pytest.raises(OSError, match="Input/output error"):
        storage.retry(failing(lambda: 7, [errno.EIO] * 4))
    for number in (errno.ENOSPC, errno.EACCES, errno.ENOENT):
        call = failing(lambda: 7, [number, number])
        with pytest.raises(OSError):
            storage.retry(call)
        assert len(call.left) == 1


def test_waits_grow(monkeypatch):
    slept = []
    monkeypatch.setattr(storage.time, "sleep", slept.append)
    storage.retry(failing(lambda: 7, [errno.EIO] * 3), waits=(0.5, 2.0, 8.0))
    assert slept == [0.5, 2.0, 8.0]


def test_what_tensorstore_says():
    assert storage.is_transient(ValueError("UNAVAILABLE: GCS is busy"))
    assert storage.is_transient(ValueError("... Failed to write [os_error_code='5' ...]"))
    assert not storage.is_transient(ValueError("... Failed to write [os_error_code='28' ...]"))
    assert not storage.is_transient(ValueError("NOT_FOUND: UNAVAILABLE"))


def test_a_run_on_such_storage_ends_with_the_same_bits(tmp_path, monkeypatch):
    """Every other commit, flush and reading of a checkpoint's file fails once, and Orbax's second save."""
    whole = loop.train(small.experiment(total_steps=9), tmp_path / "whole")
    failed = collections.Counter()

    def every_other(call, name, counts):
        def flaky(*args, **kwargs):
            if counts(*map(str, args)):
                failed[name] += 1
                if failed[name] % 2:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*args, **kwargs)

        return flaky

    def second(src, dst):
        failed["orbax"] += "orbax" in str(src)
        return "orbax" in str(src) and failed["orbax"] == 2

    with monkeypatch.context() as patch:
        ours = every_other(os.rename, "commit", lambda _, new: pathlib.Path(new).name.isdecimal())
        patch.setattr(os, "rename", failing(ours, [errno.EIO], second))
        patch.setattr(os, "fsync", every_other(os.fsync, "flush", lambda *_: True))
        patch.setattr(
            io,
            "open",
            every_other(open, "read", lambda path, mode="r", *_: "/checkpoints/" in path and mode == "rb"),
        )
        loop.train(small.experiment(total_steps=5), tmp_path / "flaky")
        found = loop.train(small.experiment(total_steps=9), tmp_path / "flaky")
    assert len(failed) == 4 and min(failed.values()) > 1
    contract.assert_trees_equal(jax.device_get(found.state), jax.device_get(whole.state))
    assert Checkpoints(tmp_path / "flaky" / "checkpoints").find() == 9


def test_a_save_that_is_lost_in_passing_is_made_up_for(tmp_path, monkeypatch, caplog):
    checkpoints = Checkpoints(tmp_path)
    state = {"x": np.arange(4.0)}
    ours = lambda _, new: pathlib.Path(new).name.isdecimal()
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing(os.rename, [errno.EIO] * 4, ours))
        checkpoints.save(1, state, {})
        checkpoints.save(2, state, {})
        checkpoints.wait()
    assert checkpoints.steps() == [2] and "saving step 1 failed: Input/output error" in caplog.text
    with monkeypatch.context() as patch:  # the last one, after which there is no next
        patch.setattr(os, "rename", failing(os.rename, [errno.EIO] * 4, ours))
        checkpoints.save(3, state, {})
        checkpoints.finish(3, state, {})
        patch.setattr(os, "rename", failing(os.rename, [errno.ENOSPC], ours))
        checkpoints.save(4, state, {})
        with pytest.raises(UserError, match="saving step 4 failed: No space left"):
            checkpoints.finish(4, state, {})
    assert checkpoints.steps() == [2, 3]
    checkpoints.close()


def test_storage_that_stays_broken_ends_the_run(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(os, "rename", failing(os.rename, [errno.EIO] * 100))
    with pytest.raises(UserError, match="saving step 3 failed"):
        for step in range(1, 10):
            checkpoints.save(step, {"x": np.arange(4.0)}, {})
    monkeypatch.undo()


def test_a_record_that_cannot_be_read_at_once_is_not_a_broken_one(monkeypatch):
    source = miniatures.Numbers(16, "numbers")
    kind = type(source)
    wanted, _ = dataset.Dataset(source, miniatures.Rows(), 8, 0).read(0)
    monkeypatch.setattr(kind, "__getitem__", failing(kind.__getitem__, [errno.EIO, errno.EIO]))
    found, problems = dataset.Dataset(source, miniatures.Rows(), 8, 0).read(0)
    assert not problems
    contract.assert_trees_equal(found, wanted)
