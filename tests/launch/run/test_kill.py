"""Faults at random moments of a real training command: what comes of it is what would have come of it anyway.

One trial of each in `make test-all`; `python -m tests.launch.run.faults --trials=20` does as many as you like. What
kill -9 and harm leave behind is in `make test` without a command: test_resume.py and storage/test_checkpoint.py.
"""

import pytest

from tests.launch.run.faults import KINDS, Faults, run_flags

SMALLER = [f"--gin_param=gpt.{line}" for line in ("layers = 1", "d_model = 16", "heads = 2", "d_ff = 32")]


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"), run_flags("next_token") + SMALLER)


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(n, id=kind) for n, kind in enumerate(KINDS, 1)])
def test_a_run_that_was_struck_goes_on_bit_for_bit(faults, number):
    kind, strikes, different = faults.trial(number)
    assert not different, (kind, strikes, different)
