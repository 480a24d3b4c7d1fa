"""What every objective passes, for those on pairs."""

import pytest

from paradigm.optim import AdamW
from tests import contract
from tests.multimodal import tiny

OPTIMIZER = AdamW(1e-3, weight_decay=0.1)
ALL = {
    "clip": tiny.clip(),
    "siglip": tiny.siglip(),
    "coca": tiny.coca(),
    "cappa": tiny.cappa(),
    "simvlm": tiny.simvlm(),
    "unified_vlp": tiny.unified_vlp(),
}
batches = lambda name: tiny.batch_of if name in ("clip", "siglip") else tiny.captions_of
everyone = pytest.mark.parametrize("name", ALL)


@everyone
def test_resume_is_bit_exact(name):
    contract.check_resume(ALL[name], OPTIMIZER, batches(name)(), ema=0.9)


@everyone
def test_cached_embeddings_equal_the_big_batch(name):
    contract.check_microbatches(ALL[name], batches(name)(masked=3))


@everyone
@contract.every_mesh
def test_sharded_equals_one_device(name, mesh):
    contract.check_sharding(ALL[name], batches(name)(masked=3), mesh)


def test_sharded_microbatches_equal_one_device():
    contract.check_sharding(ALL["clip"], tiny.batch_of(16, masked=3), microbatches=2)


@everyone
def test_compiles_from_shapes_alone(name):
    contract.check_abstract(ALL[name], OPTIMIZER, batches(name)(), 8, ema=0.9)


@everyone
def test_weights_do_not_depend_on_parameters(name):
    contract.check_weights(ALL[name], batches(name)(masked=3))
