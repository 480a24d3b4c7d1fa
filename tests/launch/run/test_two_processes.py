"""Several processes are one run: they read their own rows, write once, stop together, and end when one of them ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from launch.run import loop
from launch.storage.checkpoint import Checkpoints
from tests.launch import small

NAMES = f"process 1 of 2 ({socket.gethostname()})"


def start(workdir, steps, *flags, count=2):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for index in range(count):
        log = open(f"{workdir}.{index}.log", "w")  # a file: gloo writes into the middle of lines
        where = [str(index), str(port), str(workdir), str(steps), f"--count={count}", *flags]
        command = [sys.executable, "-m", "tests.launch.run.two_processes", *where]
        processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ}))
    return processes


def logs(workdir, count=2):
    return [open(f"{workdir}.{index}.log").read() for index in range(count)]


def codes(processes, timeout=120):
    """Exit codes; None for one that had to be killed here."""
    try:
        end = time.monotonic() + timeout
        return [process.wait(timeout=max(end - time.monotonic(), 0.1)) for process in processes]
    except subprocess.TimeoutExpired:
        return [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()


def finish(processes, workdir):
    assert codes(processes) == [0] * len(processes), logs(workdir, len(processes))


def until(workdir, text, index=0, seconds=120):
    end = time.monotonic() + seconds
    while text not in logs(workdir)[index] and time.monotonic() < end:
        time.sleep(0.05)
    assert text in logs(workdir)[index], logs(workdir)


def losses(workdir):
    return {r["step"]: r["train/loss"] for r in small.rows(workdir) if "train/loss" in r}


def test_they_equal_one_process(tmp_path):
    """Two begin, one process goes on on another mesh, and two end the run, on devices that are no neighbours in the
    batch, as on a torus: a process's hold the first and the third quarter. Each reads its own rows and no others."""
    loop.train(small.experiment(total_steps=12), tmp_path / "one")
    workdir, rows = tmp_path / "two", lambda: [re.search(r"rows (\[.*?\])", log)[1] for log in logs(tmp_path / "two")]
    finish(start(workdir, 4, "--mesh=fsdp:4"), workdir)
    assert rows() == [str([*range(8)]), str([*range(8, 16)])]
    loop.train(small.experiment(total_steps=8, mesh="data:2,fsdp:2,tensor:2"), workdir)
    finish(start(workdir, 12, "--interleave"), workdir)
    held = (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)
    assert rows() == [str([8 * 16 + row for row in mine]) for mine in held]
    one, two = losses(tmp_path / "one"), losses(workdir)
    assert one.keys() == two.keys() == {4, 8, 12}
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)
    pick = lambda at: {row["step"]: row["valid/loss"] for row in small.rows(at) if "valid/loss" in row}
    one, two = pick(tmp_path / "one"), pick(workdir)
    np.testing.assert_allclose([two[n] for n in (6, 12)], [one[n] for n in (6, 12)], rtol=1e-5)
    shown = logs(workdir)[1]
    assert "process 1 of 2 · 2 of 4 devices" in shown and "mesh data:4 fsdp:1 tensor:1 · python 3" in shown


@pytest.mark.slow
def test_saved_by_four_gone_on_by_one_and_by_two(tmp_path):
    """Four processes save on one mesh; one process, then two, go on on others. Same examples, same losses."""
    loop.train(small.experiment(total_steps=12), tmp_path / "one")
    workdir = tmp_path / "run"
    finish(start(workdir, 4, "--devices=1", "--mesh=fsdp:4", count=4), workdir)
    rows = [re.search(r"rows (\[.*?\])", log)[1] for log in logs(workdir, 4)]
    assert rows == [str([*range(4 * i, 4 * i + 4)]) for i in range(4)]
    loop.train(small.experiment(total_steps=8, mesh="data:2,fsdp:2,tensor:2"), workdir)
    finish(start(workdir, 12, "--mesh=data:2,tensor:2"), workdir)
    one, moved = losses(tmp_path / "one"), losses(workdir)
    assert one.keys() == moved.keys() == {4, 8, 12}
    np.testing.assert_allclose(list(moved.values()), list(one.values()), rtol=1e-5)


def test_sigterm_to_one_stops_both_at_one_step(tmp_path):
    workdir = tmp_path / "run"
    processes = start(workdir, 1_000_000)
    until(workdir, "step 4/")
    processes[1].send_signal(signal.SIGTERM)
    finish(processes, workdir)
    (step,) = re.findall(r"stopped at step (\d+) of", logs(workdir)[0])
    assert Checkpoints(workdir / "checkpoints").find() == int(step)


@pytest.mark.parametrize("fault, code, text", [
    ("kill:1:5", -signal.SIGKILL, f"error: {NAMES} is gone: killed, out of memory, or its host was lost"),
    ("raise:1:5", 1, f"error: {NAMES} ended: RuntimeError: out of luck"),
])  # fmt: skip
def test_when_one_ends_the_other_says_which_and_ends(tmp_path, fault, code, text):
    workdir = tmp_path / "run"
    processes = start(workdir, 1_000_000, f"--fault={fault}")
    began = time.monotonic()
    processes[1].wait(timeout=120)
    ended = time.monotonic()
    assert codes(processes, 30) == [3, code], logs(workdir)
    assert time.monotonic() - ended < 15 and began < ended
    assert text in logs(workdir)[0] and "Traceback" not in logs(workdir)[0], logs(workdir)
    assert ("RuntimeError: out of luck" in logs(workdir)[1]) == (code == 1)
    assert Checkpoints(workdir / "checkpoints").find() is not None or "kill" in fault


def test_the_death_of_process_0_ends_the_others(tmp_path):
    workdir = tmp_path / "run"
    processes = start(workdir, 1_000_000, "--fault=kill:0:5")
    processes[0].wait(timeout=120)
    ended = time.monotonic()
    found = codes(processes, 30)
    assert found[0] == -signal.SIGKILL and found[1] not in (0, None), logs(workdir)
    assert time.monotonic() - ended < 15


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_others_within_30_seconds(tmp_path):
    workdir = tmp_path / "run"
    processes = start(workdir, 1_000_000, "--fault=stop:1:5")
    until(workdir, "step 4/")
    began = time.monotonic()
    try:
        assert processes[0].wait(timeout=40) == 3, logs(workdir)
        assert time.monotonic() - began < 30
        assert f"{NAMES} gave no sign of life for 25 s" in logs(workdir)[0]
    finally:
        for process in processes:
            process.kill()


def test_a_step_that_hangs_shows_where_and_ends_all(tmp_path):
    workdir = tmp_path / "run"
    assert codes(start(workdir, 1_000_000, "--fault=sleep:1:5", "--step_timeout=15")) in ([3, 4], [4, 4], [4, 3])
    first, second = logs(workdir)
    assert "has not ended after 15 s; where each thread stands:" in first + second
    assert 'two_processes.py", line' in second or "ended: step 6 has not ended" in second


ANOTHER = f"{NAMES} has another config than process 0 ({socket.gethostname()}): - seed = 0; + seed = 7. Give every"


@pytest.mark.parametrize("fault, text", [
    ("config:1:0", f"error: {ANOTHER} process the same command"),
    ("alone:1:0", "is not the directory that process 0 writes to (process 1 of 2"),
])  # fmt: skip
def test_processes_that_do_not_belong_together(tmp_path, fault, text):
    workdir = tmp_path / "run"
    found = codes(start(workdir, 4, f"--fault={fault}"))
    assert found in ([2, 2], [3, 2]), logs(workdir)
    assert all(text in log for log in logs(workdir)), logs(workdir)
    assert not (workdir / "metrics.jsonl").exists()


def test_nobody_at_the_coordinator(tmp_path):
    """Process 1 waits for process 0, process 0 for process 1; each says what to look at."""
    workdir = tmp_path / "run"
    zero, one = start(workdir, 4, "--join_timeout=4")
    zero.kill()
    assert one.wait(timeout=60) == 2
    shown = logs(workdir)[1]
    assert "nobody answered at --coordinator=127.0.0.1:" in shown and "within 4 s" in shown and "Traceback" not in shown
    zero, one = start(workdir, 4, "--join_timeout=6")
    one.kill()
    assert zero.wait(timeout=60) == 2
    assert "error: after 6 s not all 2 processes are there" in logs(workdir)[0]
