"""CoCa (Yu et al. 2022) is a Sum of CLIP and a decoder that captions, on towers that both parts have by their paths."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from multimodal.objectives.base import ImageText
from multimodal.zero_shot import Retrieval
from paradigm.attention import AttentionMask
from paradigm.combine import Sum
from paradigm.dataset import Dataset
from paradigm.objective import Context, Loss, Term
from t5like.models import PARTITION_RULES
from tests import contract
from tests.multimodal import tiny
from tests.multimodal.pairs import opened, plain, table
from tests.vision.pictures import folder
from tests.vision.tiny import Opened


class Captioner(nn.Module):
    stack: Any

    @nn.compact
    def __call__(self, tokens, patches):
        return self.stack(tokens, AttentionMask(causal=True), source=patches, source_mask=AttentionMask())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption(ImageText):
    """Next tokens from the text tower's outputs and the image tower's patches, read by the text tower's own table."""

    def modules(self):
        towers = {name: x for name, x in super().modules().items() if name in ("encoder", "text")}
        width, stack = self.text.d_model, self.text.stack(cross=True, layers=1, parent=None)
        return {**towers, "captioner": (Captioner(stack), (jnp.zeros((1, 4, width)), jnp.zeros((1, 3, width))))}

    def encode(self, params, extra, batch, ctx):
        images = self.views[0](batch["image"], batch["aspect"], ctx.keys("view/0", batch["index"]))
        variables = self.variables(params, extra)
        _, image, _ = self.apply("encoder", variables, images, ctx=ctx)
        _, text, _ = self.apply("text", variables, batch["tokens"], ctx=ctx)
        x, _, _ = self.apply("captioner", variables, text["tokens"], image["patches"], ctx=ctx)
        logits, targets = x[:, :-1] @ params["text"]["embed"]["embedding"].T, batch["tokens"][:, 1:]
        weights = (targets > 0) * batch["mask"][:, None]
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return {}, Loss({"nll": Term(jnp.sum(nll * weights), jnp.sum(weights))})

    @property
    def partition_rules(self):
        return *super().partition_rules, *PARTITION_RULES


CLIP = tiny.clip()
CAPTION = Caption(**{field.name: getattr(CLIP, field.name) for field in dataclasses.fields(Caption)})
COCA = Sum(parts=(("clip", CLIP), ("caption", CAPTION)), coefficients=(1.0, 2.0))


def batch_of(step):
    """Both parts prepare the same pairs."""
    batch = tiny.batch_of(masked=3)(step)
    own = {f"{name}/{k}": x for name, _ in COCA.parts for k, x in batch.items() if k not in ("index", "mask")}
    return {**own, "index": batch["index"], "mask": batch["mask"]}


def test_one_pair_of_towers_learns_from_both():
    params = jax.jit(COCA.init)(jax.random.key(0))
    assert set(params) == {"encoder", "image_head", "text", "text_head", "log_scale", "captioner"}
    batch, ctx = tiny.batch_of(masked=3)(0), Context(jnp.int32(0))

    @jax.jit
    def slopes(params):
        of = lambda objective, batch: jax.grad(lambda p: objective.loss(p, {}, batch, ctx).value())(params)
        whole = jax.grad(lambda p: COCA.loss(p, {n: {} for n, _ in COCA.parts}, batch_of(0), ctx).value())(params)
        return whole, *(of(part, batch) for _, part in COCA.parts)

    whole, clip, caption = slopes(params)
    contract.assert_trees_close(whole, jax.tree.map(lambda a, b: a + 2 * b, clip, caption), 1e-5)
    for tower in ("encoder", "text"):
        assert all(any(np.any(x) for x in jax.tree.leaves(g[tower])) for g in (clip, caption))


def test_both_parts_see_one_caption_of_a_picture(tmp_path):
    """Of several, drawn anew for each example."""
    names = [f"{letter}{k}" for k in range(8) for letter in "ab"]
    folder(tmp_path, {f"{k}.png": np.full((4, 4, 3), k, np.uint8) for k in range(16)})
    lines = [
        (f"{k}.png", *(f"{name} {n}" for n in "1234"), "train" if k < 12 else "valid") for k, name in enumerate(names)
    ]
    prepared = opened(table(tmp_path, ("image", *"wxyz", "part"), *lines), text=[*"wxyz"], split="part")
    stream = Dataset(prepared.source(), COCA.preprocess, 12, 0)
    drawn = [stream.batch(step) for step in range(4)]
    for batch in drawn:
        np.testing.assert_array_equal(batch["clip/tokens"], batch["caption/tokens"])
    which = {int(row[3]) - 3 for batch in drawn for row in batch["clip/tokens"]}
    assert which == {ord(n) for n in "1234"}


@pytest.mark.slow
def test_it_is_cut_and_laid_out_like_any_other():
    contract.check_microbatches(COCA, batch_of)
    contract.check_sharding(COCA, batch_of)


def test_its_towers_are_searched_like_those_of_clip(tmp_path):
    prepared = opened(plain(tmp_path), valid=0.5)
    data = Opened(prepared.source)
    data.tokenizer = prepared.tokenizer
    params = jax.jit(COCA.init)(jax.random.key(0))
    variables = COCA.variables(params, {name: {} for name, _ in COCA.parts})
    found, _ = Retrieval(random=False).run(COCA, variables, data)
    assert found == Retrieval(random=False).run(CLIP, variables, data)[0] and found["image_to_text@5"] > 0
