"""ViLT: Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", section 3.

One transformer over patches and tokens that all see each other, and two losses, each by a pass of its own as in the
official compute_mlm and compute_itm_wpa:

    L_mlm = -mean over hidden tokens of log p(y[t] | image, the rest of y)          15 % hidden, as BERT hides them
    L_itm = -mean over pictures of log p(whether the caption beside it is its own | the first token)
    loss  = L_mlm + L_itm

Half of the pictures have another's caption beside them (VisualBERT, Li et al. 2019, section 3.3; ViLT moves the picture
in place of the caption, which comes to the same pairs). Which one, of the batch's that differ from its own, is drawn

    with probability proportional to exp(hardness * cosine of the two captions' bags of words)

0 is ViLT's uniform draw. Above it they are hard: ALBEF (Li et al. 2021, section 3.2) draws by exp(s / T) too, s being
its two towers' similarity and T about 0.07. One stream has no towers, and words say it before the first step.

Not here: the word patch alignment, 0.1 of ViLT's loss, and hiding whole words. The picture is one square of patches.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from multimodal.objectives.captioner import HiddenCaptionTokens, TwoWay
from paradigm import rng
from paradigm.objective import MAIN, Loss
from paradigm.partition import constrain_rows
from t5like import heads
from t5like.scoring import score_pairs
from vision.heads import l2_normalize

BAG = 1024  # places of a bag of words: ids that far apart share one


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViLT(TwoWay, HiddenCaptionTokens):
    """Hidden tokens, and whether a caption is the picture's. encoder: a SingleStream with mask token, all of the model.

    false: the share of pictures that have another's caption. hardness: see above. rate, masked, random: see
    HiddenCaptionTokens.
    """

    false: float = 0.5
    hardness: float = 0.0

    shares = ("false", *HiddenCaptionTokens.shares)
    contrasts = True

    def modules(self):
        head = heads.PairHead(**self.encoder.shared())
        return {**super().modules(), "pairs": (head, jnp.zeros((1, self.encoder.d_model)))}

    def batch_spec(self, batch_size, phase=MAIN):
        self.check_pairs(batch_size)
        return super().batch_spec(batch_size, phase)

    def paired(self, batch):
        """{"pair_tokens" int32 [B, L], a caption for each picture, "matched" int32 [B], whether it is its own}."""
        tokens, mask = jnp.asarray(batch["tokens"]), batch["mask"]
        places = jnp.arange(len(mask))
        draw = lambda name: rng.per_example(rng.key(0, name), batch["index"])
        kind = jax.vmap(jax.random.uniform)(draw("whether the caption is another's"))
        noise = jax.vmap(lambda key: jax.random.gumbel(key, mask.shape))(draw("captions of others"))
        text = jnp.asarray(self.vocabulary.is_text(np.arange(self.encoder.vocab_size)), jnp.float32)[tokens]
        bags = l2_normalize(jnp.zeros((len(mask), BAG)).at[places[:, None], tokens % BAG].max(text))
        equal = jnp.all(tokens[:, None] == tokens[None], -1)
        others = (mask > 0) & ~equal
        chosen = jnp.argmax(jnp.where(others, self.hardness * (bags @ bags.T) + noise, -jnp.inf), 1)
        matched = (kind >= self.false) | ~others.any(1)
        tokens = constrain_rows(tokens[jnp.where(matched, places, chosen)])
        return {"pair_tokens": tokens, "matched": matched.astype(jnp.int32)}

    def loss(self, params, extra, batch, ctx):
        variables, tokens, index = self.variables(params, extra), batch["tokens"], batch["index"]
        pairs = batch if "matched" in batch else self.paired(batch)  # a batch in training has them before it is cut
        patches, _, _ = self.apply("encoder", variables, self._images(batch, ctx), ctx=ctx, method="see")
        at = jnp.arange(self.length)
        real = ((at > 0) & (at < self.lengths(tokens)[:, None] - 1)) * batch["mask"][:, None]
        seen, hidden, chosen = self.hide(tokens, real, ctx, index)
        states = self.read(variables, patches, seen, "hidden", ctx, index, hidden=hidden)
        loss = self.caption_loss(params, states, tokens, jnp.float32(chosen))
        first = self.read(variables, patches, pairs["pair_tokens"], "pairs", ctx, index)[:, 0]
        logits, _, _ = self.apply("pairs", variables, first, ctx=ctx)
        return loss.join(score_pairs(logits, pairs["matched"], batch["mask"])).join(Loss(metrics=self._cut(batch)))

    @property
    def partition_rules(self):
        return (*heads.PARTITION_RULES, *super().partition_rules)

    def forward_flops(self, batch_spec):
        rows, e = batch_spec["mask"].size, self.encoder
        again = e.stack(parent=None).flops(rows, e.count + self.length)
        return {"encoder": e.flops(rows, self.length) + again, "pairs": 2 * rows * e.d_model * (e.d_model + 2)}
