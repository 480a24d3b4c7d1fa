"""What launch.train says to whoever started it when a signal ended it early."""

import os
import pathlib
import subprocess
import sys

import pytest

REPO = pathlib.Path(__file__).parents[3]
CODE = """
import runpy, sys
from launch.run import loop
loop.train = lambda *args, **how: loop.Finished(3, {interrupted}, None, {{}})
sys.argv = ["train", "--gin_file=runs/smoke/next_token.gin", "--workdir=/nowhere", *{flags}]
runpy.run_module("launch.train", run_name="__main__")
"""


@pytest.mark.parametrize("interrupted, flags, code", [
    (True, ["--interrupted_code=75"], 75),
    (True, [], 0),
    (False, ["--interrupted_code=75"], 0),
])  # fmt: skip
def test_exit_code(interrupted, flags, code):
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # it does not start itself again for it
    command = [sys.executable, "-c", CODE.format(interrupted=interrupted, flags=flags)]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
