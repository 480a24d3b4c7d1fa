"""What every objective passes, for those on pairs."""

import pytest

from tests import contract
from tests.multimodal import tiny


def case(objective, kind, batch_of=tiny.captions_of, **more):
    return contract.Case(objective, batch_of(), kind, batch_of(masked=3), **more)


MASKED = tiny.silc_sigmoid(encoder=tiny.siglip().encoder.clone(mask_token=True), masked=0.25)
CASES = {
    "clip": case(tiny.clip(), "towers", tiny.batch_of),
    "siglip": case(tiny.siglip(), "towers, a pair alone", tiny.batch_of),
    "silc": case(tiny.silc(), "towers", tiny.batch_of),
    "siglip2": case(MASKED, "towers, a pair alone", tiny.batch_of, variant=True),
    "coca": case(tiny.coca(), "towers and captions"),
    "open_coca": case(tiny.open_coca(), "towers and captions", variant=True),
    "cappa": case(tiny.cappa(), "captions"),
    "simvlm": case(tiny.simvlm(), "one stream"),
    "magma": case(tiny.magma(), "captions"),
    "nlvr": case(tiny.nlvr(), "one stream", tiny.two_pictures),
    "unified_vlp": case(tiny.unified_vlp(), "one stream"),
    "vilt": case(tiny.vilt(hardness=5.0, rate=0.4), "one stream"),
}
globals().update(contract.tests(CASES))


@pytest.mark.slow
def test_sharded_microbatches_equal_one_device():
    contract.check_sharding(CASES["clip"].objective, tiny.batch_of(16, masked=3), microbatches=2)
