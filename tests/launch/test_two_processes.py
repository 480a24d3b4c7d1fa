"""Two processes of two devices each are one run: they read their own rows, write once, and stop together."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np

from launch import loop
from launch.checkpoint import Checkpoints
from tests.launch import small


def start(workdir, steps):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for index in (0, 1):
        log = open(f"{workdir}.{index}.log", "w")  # a file: gloo writes into the middle of lines
        command = [sys.executable, "-m", "tests.launch.two_processes", str(index), str(port), str(workdir), str(steps)]
        processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ}))
    return processes


def logs(workdir):
    return [open(f"{workdir}.{index}.log").read() for index in (0, 1)]


def finish(processes, workdir):
    try:
        codes = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], logs(workdir)


def test_they_equal_one_process(tmp_path):
    """Stopped at step 4 and gone on; each process starts there with its own half of the next batch."""
    loop.train(small.experiment(total_steps=8), tmp_path / "one")
    for steps in (4, 8):
        finish(start(tmp_path / "two", steps), tmp_path / "two")
    first, second = (re.search(r"rows (\[.*?\])", log)[1] for log in logs(tmp_path / "two"))
    assert (first, second) == (str([*range(64, 72)]), str([*range(72, 80)]))
    pick = lambda workdir: {r["step"]: r["train/loss"] for r in small.rows(workdir) if "train/loss" in r}
    one, two = pick(tmp_path / "one"), pick(tmp_path / "two")
    assert one.keys() == two.keys() == {4, 8}
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)


def test_sigterm_to_one_stops_both_at_one_step(tmp_path):
    workdir = tmp_path / "run"
    processes = start(workdir, 1_000_000)
    end = time.monotonic() + 120
    while "step 4/" not in logs(workdir)[0] and time.monotonic() < end:
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes, workdir)
    (step,) = re.findall(r"stopped at step (\d+) of", logs(workdir)[0])
    assert Checkpoints(workdir / "checkpoints").find() == int(step)
