"""What every objective passes, for those on pairs."""

import pytest

from tests import contract
from tests.multimodal import tiny


def case(objective, kind, batch_of=tiny.captions_of):
    return contract.Case(objective, batch_of(), kind, batch_of(masked=3))


CASES = {
    "clip": case(tiny.clip(), "towers", tiny.batch_of),
    "siglip": case(tiny.siglip(), "towers, a pair alone", tiny.batch_of),
    "silc": case(tiny.silc(), "towers", tiny.batch_of),
    "coca": case(tiny.coca(), "towers and captions"),
    "cappa": case(tiny.cappa(), "captions"),
    "simvlm": case(tiny.simvlm(), "one stream"),
    "unified_vlp": case(tiny.unified_vlp(), "one stream"),
    "vilt": case(tiny.vilt(hardness=5.0, rate=0.4), "one stream"),
}
globals().update(contract.tests(CASES))


@pytest.mark.slow
def test_sharded_microbatches_equal_one_device():
    contract.check_sharding(CASES["clip"].objective, tiny.batch_of(16, masked=3), microbatches=2)
