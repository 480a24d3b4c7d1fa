"""A step that hangs ends its process with the stacks of its threads; one that does not is left alone."""

import pathlib
import subprocess
import sys

REPO = pathlib.Path(__file__).parents[3]
BEGIN = """
import ctypes, os, time
from launch.run import watchdog
watchdog.LATER = 0.5
told = lambda line: print("told:", line, flush=True)
"""


def run(code):
    command = [sys.executable, "-c", BEGIN + code]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)


def test_what_hangs_is_ended():
    done = run("""
def innermost():
    time.sleep(60)
with watchdog.Watchdog(0.5, told) as watch:
    watch.at("step 12")
    innermost()
""")
    assert done.returncode == 4
    assert "error: step 12 has not ended after 0.5 s; where each thread stands:" in done.stderr
    assert "in innermost" in done.stderr and "--step_timeout sets the bound" in done.stderr
    assert done.stdout == "told: step 12 has not ended after 0.5 s\n"


def test_what_goes_on_is_left_alone():
    done = run("""
with watchdog.Watchdog(0.6, told) as watch:
    for step in range(8):
        watch.at(f"step {step}")
        time.sleep(0.2)
    watch.at("an evaluation", 10)
    time.sleep(1.2)
    watch.at("the end")
time.sleep(1.5)
with watchdog.Watchdog(0, told) as watch:
    watch.at("anything")
    time.sleep(0.5)
print("alive")
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


def test_a_bound_after_a_longer_one_holds():
    done = run("""
with watchdog.Watchdog(0.4, told) as watch:
    watch.at("an evaluation", 50)
    time.sleep(0.1)
    watch.at("step 3")
    time.sleep(30)
""")
    assert done.returncode == 4 and "step 3 has not ended after 0.4 s" in done.stderr


def test_a_thread_that_lets_no_other_speak_is_ended_too():
    done = run("""
with watchdog.Watchdog(0.5, told) as watch:
    watch.at("step 1")
    ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock
""")
    assert done.returncode == 1 and "Timeout" in done.stderr and "most recent call first" in done.stderr
