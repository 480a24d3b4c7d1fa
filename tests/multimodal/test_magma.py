"""MAGMA: what is trained and what stays, and what it refuses; its loss and its cache: test_captioners.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigm import trees
from paradigm.adapt import BottleneckAdapter, LoRA
from paradigm.errors import UserError
from paradigm.objective import Context
from t5like.models import bert, gpt
from tests.multimodal import tiny
from vision.resnet import resnet

ADAPT = BottleneckAdapter(style="mlp", where="^model/", train=("^encoder/",))


def test_the_language_model_stays_but_for_an_adapter_of_a_quarter_after_every_mlp():
    adapted = tiny.magma().adapted(ADAPT)
    params = jax.eval_shape(adapted.init, jax.random.key(0))
    trained, frozen = (dict(trees.named_leaves(x)) for x in trees.split(params, adapted.freeze_table()))
    assert {name.split("/")[0] for name in frozen} == {"model"}
    own = {name: x.shape for name, x in trained.items() if name.startswith("model/")}
    assert own and all("/mlp/adapter/" in name for name in own)
    assert own["model/decoder/layers/mlp/adapter/down/kernel"] == (2, 24, 6)
    assert {name.split("/")[0] for name in trained} == {"model", "encoder", "prefix"}
    text = jax.eval_shape(
        gpt("tiny", 384, d_model=24, heads=2, d_ff=40, layers=2).init, jax.random.key(0), jnp.ones((1, 8), int)
    )
    base = {f"model/{name}": x.shape for name, x in trees.named_leaves(text["params"])}
    assert base == {name: x.shape for name, x in frozen.items()}, "the parameters of a run on text"


def test_the_adapter_reads_what_the_mlp_gave():
    """branch + U relu(D branch + b) + c, by hand: with U = 0 nothing changes, and a bias c is added as it is."""
    objective = tiny.magma(dropout=0.0).adapted(ADAPT)
    params = jax.jit(objective.init)(jax.random.key(0))
    batch, ctx = tiny.captions_of()(0), Context(jnp.int32(0), train=False)
    loss = jax.jit(lambda p: objective.loss(p, {}, batch, ctx).value())
    base = trees.nested({n: x for n, x in trees.named_leaves(params) if "adapter" not in n})
    bare = dataclasses.replace(objective, adapt=None)
    plain = jax.jit(lambda p: bare.loss(p, {}, batch, ctx).value())(base)
    np.testing.assert_allclose(loss(params), plain, rtol=1e-6)
    shifted = trees.named_map(lambda n, x: x + 0.3 if n.endswith("adapter/up/bias") else x, params)
    assert abs(loss(shifted) - plain) > 1e-4


def test_an_adapted_output_is_the_one_that_is_trained():
    """As decoding has it, by `score` through the adaptation."""
    model = gpt("tiny", None, d_model=24, heads=2, d_ff=40, layers=2, tied=False)
    objective = tiny.magma(model=model, dropout=0.0).adapted(LoRA(rank=2, targets=("^model/logits/kernel$",)))
    params = jax.jit(objective.init)(jax.random.key(0))
    drawn = lambda x: jax.random.normal(jax.random.key(2), x.shape)
    params = trees.named_map(lambda n, x: drawn(x) if n.endswith("lora_b") else x, params)
    hidden = jax.random.normal(jax.random.key(1), (1, 3, 24))
    logits = objective.apply("model", {"params": params}, hidden, method="score")[0]
    batch = jnp.array([[3, 4, 5]]), jnp.ones((1, 3))
    wanted = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch[0][..., None], -1).sum()
    np.testing.assert_allclose(objective.caption_loss(params, hidden, *batch).terms["caption"].sum, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: tiny.magma(model=bert("tiny", None)), "Magma.model is of type Encoder: give it a Decoder"),
        (lambda: tiny.magma(encoder=resnet("tiny", depths=(1, 1), width=0.25)), "Magma reads patches: choose a ViT"),
        (
            lambda: tiny.magma(model=gpt("tiny", None, style="gpt2", d_model=24, heads=2, max_length=20)),
            "Magma: 16 patches and captions of 8 tokens, and the model has 20 learned positions",
        ),
    ],
)
def test_what_a_person_can_set_wrong(make, text):
    with pytest.raises(UserError, match=text):
        make()
