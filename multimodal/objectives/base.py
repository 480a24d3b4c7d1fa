"""What every objective on pairs of image and text shares: the towers, the shared space, and what of it is locked."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multimodal.partition import PARTITION_RULES
from multimodal.preprocess import PreprocessPair
from multimodal.towers import PROJECTIONS, Head
from paradigm.errors import UserError, choose
from paradigm.objective import MAIN, Context, Loss
from t5like.tokenizer import EOS
from vision.heads import l2_normalize
from vision.objectives.base import ImageObjective, update_batch_stats

_EVALUATION = Context(0, train=False)
MODULES = ("encoder", "image_head", "text", "text_head")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageText(ImageObjective):
    """Base of the objectives on pairs. A subclass gives `full_batch_loss`, on unit vectors {"image", "text"} [B, E].

    Parameters are trees `encoder`, `image_head`, `text` and `text_head`, and the scalars of `scalars`.

    encoder, augment, host_image_size: see ImageObjective; a pair has one view.
    text: a TextTower. tokenizer: one that encodes captions in place of the data's own, as weights from elsewhere bring
        it; None takes the ids that the data have.
    width: E. image_projection, text_projection: linear, affine (with a bias) or none, when the tower has that width.
    image_pool: encoder, what the encoder pools; or map, by attention over its patches.
    ignore_aspect: read pictures whole, resized to a square whatever their shape, as SigLIP does; False keeps their
        aspect.
    locked: names among encoder, image_head, text, text_head through which no gradient flows and whose BatchNorm keeps
        its statistics: ("encoder",) is locked-image tuning (Zhai et al. 2022, "LiT", section 3.2). Weight decay would
        still shrink them: name them in the optimizer's `freeze` as well, as objectives/lit.gin does.

    The loss is over all pairs of the batch: a caption that occurs twice in it is a negative of its own picture. With
    CLIP the two share what probability the caption gets; SigLIP labels one a yes and the other a no, and even chances
    are then the best answer. Rows of mask 0 are nobody's negatives.

    Raises UserError when towers, heads, views and tokenizer do not fit each other.
    """

    text: Any
    tokenizer: Any = None
    width: int = 512
    image_projection: str = "linear"
    text_projection: str = "linear"
    image_pool: str = "encoder"
    ignore_aspect: bool = False
    locked: tuple[str, ...] = ()

    full_batch = True

    def __post_init__(self):
        name = type(self).__name__
        object.__setattr__(self, "locked", tuple(self.locked))  # gin gives a list
        for part in self.locked:
            choose(f"{name}.locked", part, dict.fromkeys(MODULES))
        choose(f"{name}.image_pool", self.image_pool, dict.fromkeys(("encoder", "map")))
        for side, tower in (("image", self.encoder), ("text", self.text)):
            kind = getattr(self, f"{side}_projection")
            if choose(f"{name}.{side}_projection", kind, PROJECTIONS) is None and tower.features != self.width:
                raise UserError(
                    f"{name}: the {side} tower gives {tower.features} features and the shared space has {self.width}: "
                    f"set width={tower.features}, or {side}_projection='linear'"
                )
        if self.image_pool == "map" and not hasattr(self.encoder, "head_width"):
            raise UserError(f"{name}.image_pool='map' reads patches: choose a ViT, or image_pool='encoder'")
        nominal = self.encoder.image_size
        if hasattr(self.encoder, "grid") and self.views[0].size != nominal:
            raise UserError(
                f"{name}: views of {self.views[0].size} pixels, but the encoder reads {nominal}: make augment's size "
                "the encoder's image_size"
            )
        ids = getattr(self.tokenizer, "vocab_size", 0)
        if ids > self.text.vocab_size:
            raise UserError(
                f"{name}: the tokenizer has {ids} ids and the text tower {self.text.vocab_size}: set the tower's "
                f"vocab_size to {ids}"
            )
        end = getattr(self.tokenizer, "eos_id", EOS)
        if self.text.pool == "end" and self.text.end_id != end:
            raise UserError(
                f"{name}: captions end with the id {end} and the text tower is pooled at {self.text.end_id}: set the "
                f"tower's end_id={end}"
            )
        _ = self.preprocess  # raises now rather than in a data worker

    @property
    def has_batch_norm(self):
        return self.encoder.has_batch_norm and "encoder" not in self.locked

    @functools.cached_property
    def preprocess(self):
        return PreprocessPair(super().preprocess, self.text.length, self.tokenizer)

    def batch_spec(self, batch_size, phase=MAIN):
        if batch_size < 2:
            raise UserError(
                f"{type(self).__name__}: a batch of {batch_size} has no pair to tell from another: take at least 2"
            )
        return {
            **super().batch_spec(batch_size, phase),
            "tokens": jax.ShapeDtypeStruct((batch_size, self.text.length), jnp.int32),
            "cut": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
        }

    @property
    def scalars(self):
        """name -> first value of the parameters beside the modules."""
        return {}

    def modules(self):
        by_map = self.image_pool == "map"
        dtype = self.encoder.dtype
        patches = getattr(self.encoder, "grid", (1, 1))
        image = (1, int(np.prod(patches)), self.encoder.features) if by_map else (1, self.encoder.features)
        image_head = Head(self.width, self.image_projection, self.encoder if by_map else None, dtype=dtype)
        return {
            **super().modules(),
            "image_head": (image_head, jnp.zeros(image)),
            "text": (self.text, jnp.zeros((1, self.text.length), jnp.int32)),
            "text_head": (
                Head(self.width, self.text_projection, dtype=self.text.dtype),
                jnp.zeros((1, self.text.features)),
            ),
        }

    def init(self, key):
        modules = {name: v["params"] for name, v in self._first(key).items() if "params" in v}
        return {**modules, **{name: jnp.float32(x) for name, x in self.scalars.items()}}

    def adopt(self, params):
        """A model of text, whose tables lie at the root of its tree, becomes the text tower."""
        return {"text": params} if "embed" in params else params

    def encode(self, params, extra, batch, ctx):
        """({"image", "text"}: float32 [B, E], unit vectors; Loss with BatchNorm's moments and captions cut)."""
        params = {n: jax.lax.stop_gradient(p) if n in self.locked else p for n, p in params.items()}
        stats = extra.get("batch_stats", {})
        if ctx.train:
            images = self.views[0](batch["image"], self._aspect(batch), ctx.keys("view/0", batch["index"]))
        else:
            images = self.view(batch)
        image, moments = self._image(params, stats, images, ctx, batch["index"])
        text = self._text(params, batch["tokens"], ctx, batch["index"])
        cut = {"captions_cut": (jnp.sum(batch["cut"] * batch["mask"]), batch["mask"].sum())}
        return {"image": image, "text": text}, Loss(metrics=cut, stats=moments)

    def _image(self, params, stats, images, ctx, index=None):
        keys = self._keys("dropout/image", self.encoder, ctx, index)
        if "encoder" in self.locked:
            ctx = ctx.replace(train=False)
        x, intermediates, moments = self.apply("encoder", params, stats, images, ctx, keys=keys)
        x, _, _ = self.apply("image_head", params, {}, intermediates["patches"] if self.image_pool == "map" else x, ctx)
        return l2_normalize(x), moments

    def _text(self, params, tokens, ctx, index=None):
        keys = self._keys("dropout/text", self.text, ctx, index)
        x, _, _ = self.apply("text", params, {}, tokens, ctx, keys=keys)
        return l2_normalize(self.apply("text_head", params, {}, x, ctx)[0])

    def _aspect(self, batch):
        """[B]: the picture is a square already, and stays one where its aspect is ignored."""
        return jnp.ones_like(batch["aspect"]) if self.ignore_aspect else batch["aspect"]

    @staticmethod
    def _keys(name, tower, ctx, index):
        return ctx.keys(name, index) if ctx.train and tower.is_random else None

    def update_extra(self, extra, params, loss, ctx):
        if not loss.stats:
            return extra
        return {**extra, "batch_stats": update_batch_stats(extra["batch_stats"], loss.stats)}

    def view(self, batch):
        """The plain view of a batch's pictures, [B, H, W, C], normalised."""
        return self.views[0].plain(batch["image"], self._aspect(batch))

    # ---- For evaluation, search and notebooks ----------------------------------------------------------------------

    def embed_images(self, variables, images):
        """Normalised views [B, H, W, C] (see `view`) -> unit vectors float32 [B, E]."""
        return self._image(variables["params"], variables.get("batch_stats", {}), images, _EVALUATION)[0]

    def embed_texts(self, variables, tokens):
        """int32 [B, L] (see `tokenize`) -> unit vectors float32 [B, E]."""
        return self._text(variables["params"], tokens, _EVALUATION)

    def tokenize(self, texts, tokenizer=None):
        """Texts -> int32 [n, L] as the text tower reads them; longer ones are cut, and keep their end token.

        tokenizer: the data's, where the objective has none of its own.
        """
        return np.stack([self.preprocess.tokens(text, tokenizer)[0] for text in texts])

    @property
    def partition_rules(self):
        return PARTITION_RULES

    def flops(self, batch_spec):
        rows = batch_spec["mask"].size
        heads = self.modules()
        patches = int(np.prod(getattr(self.encoder, "grid", (0,))))
        image, text = heads["image_head"][0], heads["text_head"][0]
        forward = {
            "encoder": self.encoder.flops(rows),
            "image_head": image.flops(rows, self.encoder.features, patches),
            "text": self.text.flops(rows),
            "text_head": text.flops(rows, self.text.features),
            "pairs": 2 * rows * rows * self.width,
        }
        # The backward pass is two products for each forward one.
        return float(sum(x * (1 if name in self.locked else 3) for name, x in forward.items()))
