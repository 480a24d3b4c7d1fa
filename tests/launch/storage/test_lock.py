"""A second run in a directory is told; a run that was killed does not stand in the way of the next."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from launch.run import loop
from launch.storage import lock
from paradigm.errors import UserError
from tests.launch import small

HOLD = """
import pathlib, sys, time
from launch.storage.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    if sys.argv[2:]:
        import os
        if not os.fork():  # a worker that outlives the run
            time.sleep(20)
    time.sleep(20)
"""


@pytest.fixture
def hold():
    started = []

    def start(directory, *more):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(directory), *more], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_second_run_is_told_who_holds_the_directory_and_touches_nothing(tmp_path, hold, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    holder = hold(tmp_path / "run")
    with pytest.raises(UserError) as error:
        loop.train(small.experiment(), tmp_path / "run")
    message = str(error.value)
    assert f"{tmp_path}/run is in use by process {holder.pid} on " in message and "take another directory" in message
    assert "\n" not in message and [path.name for path in (tmp_path / "run").iterdir()] == [lock.NAME]


def test_kill_and_start_again_works_at_once(tmp_path, hold, monkeypatch):
    """Even where workers of the killed run are still there."""
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    holder = hold(tmp_path, "worker")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / lock.NAME).exists()
    with lock.locked(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / lock.NAME).read_text()
    assert not (tmp_path / lock.NAME).exists()


def test_a_run_waits_a_little_for_one_that_is_ending(tmp_path, hold, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 10.0)
    holder = hold(tmp_path)
    timer = threading.Timer(0.5, holder.kill)
    timer.start()
    with lock.locked(tmp_path):
        pass
    timer.join()


def test_two_runs_of_one_process_are_told_too(tmp_path):
    with lock.locked(tmp_path):
        with pytest.raises(UserError, match="in use by another run of this process"):
            with lock.locked(tmp_path):
                pass
    with lock.locked(tmp_path):
        pass


def test_a_directory_that_was_made_for_nothing_goes_again(tmp_path):
    with lock.locked(tmp_path / "a" / "run"):
        assert (tmp_path / "a" / "run").is_dir()
    assert not (tmp_path / "a" / "run").exists()
    with lock.locked(tmp_path / "kept"):
        (tmp_path / "kept" / "file").write_text("x")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["file"]


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "lockf", none)
    with lock.locked(tmp_path):
        assert not list(tmp_path.iterdir())
