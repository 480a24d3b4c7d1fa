"""Position prediction: what every objective passes, the paper's loss by a loop, and who sees whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm.attention import AttentionMask
from paradigm.errors import UserError
from paradigm.objective import Context
from tests import contract
from tests.compiled import compiled
from tests.vision import tiny
from vision.objectives import PatchPositions
from vision.patches import patchify, unpatchify

BATCH, CTX = tiny.batch_of(), Context(jnp.int32(0), 0, False)


def places(encoder=None, **changes):
    encoder = encoder or tiny.encoder(positions="none", class_token=False)
    return PatchPositions(encoder=encoder, augment=tiny.views(), host_image_size=tiny.HOST_SIZE, **changes)


CASES = {"patch_positions": contract.Case(places(), BATCH, "patches", tiny.masked)}
globals().update(contract.tests(CASES))


def test_loss_is_the_papers_and_a_patch_sees_the_context_and_itself():
    objective, batch = places(mask_ratio=0.5), tiny.masked(3)
    params = tiny.params(objective)
    loss = jax.jit(lambda p, image: objective.loss(p, {}, {**batch, "image": image}, CTX))
    images, seen = np.asarray(compiled(objective.view, batch)), objective.context(CTX.keys("mask", batch["index"]))
    assert np.all(seen.sum(1) == 8)
    looks = lambda row: AttentionMask(keys=seen[row][None])
    read = jax.jit(lambda image, looks: objective.encoder.apply({"params": params["encoder"]}, image, attention=looks))
    head, total, right = params["decoder"]["predict"], 0.0, 0
    for row in range(6):
        logits = np.float64(read(images[row][None], looks(row))[1]["patches"][0] @ head["kernel"] + head["bias"])
        for place in range(16):
            total += np.log(np.exp(logits[place]).sum()) - logits[place, place]
            right += logits[place].argmax() == place
    found = loss(params, batch["image"])
    np.testing.assert_allclose([found.terms["places"].sum, found.terms["places"].weight], [total, 96], rtol=1e-5)
    np.testing.assert_allclose(found.metrics["accuracy"], [right, 96])

    def states(patches):
        image = unpatchify(patches[None], 4, images.shape[1:])
        _, more, _ = objective.apply("encoder", {"params": params}, image, attention=looks(0))
        return more["patches"][0] @ np.random.default_rng(0).normal(size=16)  # a sum would be the norm's bias

    moves = np.abs(jax.jit(jax.jacobian(lambda x: states(x)))(patchify(images[:1], 4)[0])).sum(-1)  # [N, N]
    np.testing.assert_array_equal(moves > 0, (np.asarray(seen[0]) > 0)[None] | np.eye(16, dtype=bool))


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: places(tiny.encoder(class_token=False)), "asks for places that the encoder has"),
        (lambda: places(tiny.encoder(positions="none")), "PatchPositions reads patches alone"),
        (lambda: places(mask_ratio=1.0), "PatchPositions.mask_ratio=1.0 hides 16 of 16 patches"),
    ],
)
def test_what_a_person_can_set_wrong(make, text):
    with pytest.raises(UserError, match=text):
        make()
