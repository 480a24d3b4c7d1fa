"""Faults at random moments of a real training command: what comes of it is what would have come of it anyway.

One trial here, five more in `make test-all`; `python -m tests.launch.run.faults --trials=20` does as many as you like.
"""

import pytest

from tests.launch.run.faults import KINDS, Faults, run_flags

SMALLER = [f"--gin_param=gpt.{line}" for line in ("layers = 1", "d_model = 16", "heads = 2", "d_ff = 32")]


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"), run_flags("next_token") + SMALLER)


# `harm` is kill -9 and a damaged checkpoint.
@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=[pytest.mark.slow] * (kind != "harm"), id=kind) for n, kind in enumerate(KINDS, 1)]
)
def test_a_run_that_was_struck_goes_on_bit_for_bit(faults, number):
    kind, strikes, different = faults.trial(number)
    assert not different, (kind, strikes, different)
