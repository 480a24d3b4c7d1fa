"""Faults at random moments of a real training command: what comes of it is what would have come of it anyway.

Two trials here; `python -m tests.launch.faults --trials=20` does as many as you like, in more ways.
"""

import pytest

from tests.launch.faults import KINDS, Faults


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("number", [
    1 + KINDS.index("kill"),
    1 + KINDS.index("harm"),
    *(pytest.param(1 + n, marks=pytest.mark.slow) for n, kind in enumerate(KINDS) if kind not in ("kill", "harm")),
], ids=lambda number: KINDS[number - 1])  # fmt: skip
def test_a_run_that_was_struck_goes_on_bit_for_bit(faults, number):
    kind, strikes, different = faults.trial(number)
    assert not different, (kind, strikes, different)
