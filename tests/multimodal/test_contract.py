"""What every objective passes, for those on pairs."""

import pytest

from tests import contract
from tests.multimodal import tiny

ALL = {
    "clip": tiny.clip(),
    "siglip": tiny.siglip(),
    "silc": tiny.silc(),
    "siglip2": tiny.silc_sigmoid(encoder=tiny.siglip().encoder.clone(mask_token=True), masked=0.25),
    "coca": tiny.coca(),
    "open_coca": tiny.open_coca(),
    "cappa": tiny.cappa(),
    "simvlm": tiny.simvlm(),
    "magma": tiny.magma(),
    "nlvr": tiny.nlvr(),
    "unified_vlp": tiny.unified_vlp(),
    "vilt": tiny.vilt(hardness=5.0, rate=0.4),
}
BATCHES = dict.fromkeys(("clip", "siglip", "silc", "siglip2"), tiny.batch_of) | {"nlvr": tiny.two_pictures}
batches = lambda name: BATCHES.get(name, tiny.captions_of)
everyone = contract.one_by_one("name", ALL)
# On a mesh simvlm is unified_vlp without the masked tokens, and the others are settings of those beside them.
SLOW = dict.fromkeys(("siglip2", "open_coca", "simvlm"), pytest.mark.slow)
one_each = contract.one_by_one("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in ALL])


@everyone
def test_resume_is_bit_exact(name):
    contract.check_resume(ALL[name], contract.UnitStep(), batches(name)())


@pytest.mark.slow
@everyone
def test_cached_embeddings_equal_the_big_batch(name):
    contract.check_microbatches(ALL[name], batches(name)(masked=3))


@one_each
@contract.every_mesh
def test_sharded_equals_one_device(name, mesh):
    contract.check_sharding(ALL[name], batches(name)(masked=3), mesh, microbatches=2)


@pytest.mark.slow
def test_sharded_microbatches_equal_one_device():
    contract.check_sharding(ALL["clip"], tiny.batch_of(16, masked=3), microbatches=2)


@one_each
def test_compiles_from_shapes_alone(name):
    contract.check_abstract(ALL[name], contract.UnitStep(), batches(name)(), 8, microbatches=2)


@everyone
def test_weights_do_not_depend_on_parameters(name):
    contract.check_weights(ALL[name], batches(name)(masked=3))
