"""Kill -9 at random moments of a real training command: what comes of it is what would have come of it anyway.

Two trials here; `python -m tests.launch.faults --trials=20` does as many as you like.
"""

import pytest

from tests.launch.faults import Faults


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("number", [1, 2])
def test_a_killed_run_goes_on_bit_for_bit(faults, number):
    kills, different = faults.trial(number)
    assert not different, (kills, different)
