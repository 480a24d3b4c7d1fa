"""What the objectives on pairs of image and text share: the captions; and those with two towers, the shared space."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multimodal.partition import PARTITION_RULES
from multimodal.preprocess import PreprocessPair
from multimodal.towers import PROJECTIONS, Head
from paradigm.capabilities import PairEmbedding
from paradigm.errors import UserError, choose
from paradigm.objective import EVALUATION, MAIN, Loss
from t5like.vocabulary import Vocabulary, fit_rows
from vision.heads import l2_normalize
from vision.objectives.base import ImageObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithCaptions(ImageObjective):
    """Base of all objectives on pictures with captions: one view of the picture, and one caption's tokens.

    encoder, augment, host_image_size: see ImageObjective; a pair has one view.
    tokenizer: one that encodes captions in place of the data's own, as weights from elsewhere bring it; None takes the
        ids that the data have.
    ignore_aspect: read pictures whole, resized to a square whatever their shape, as SigLIP does; False keeps their
        aspect.
    vocabulary: of the captions: the tokenizer's own where one is given, else that of `bind`.

    A subclass has a field, named by `reader`, whose module reads captions: it has `vocab_size` and `length`.
    """

    tokenizer: Any = None
    ignore_aspect: bool = False
    vocabulary: Vocabulary | None = None

    reader = "text"  # the field and the module that has the captions' table
    rows = 1  # its table's rows are a multiple of this
    sources = 0  # data sets that the reader of captions tells apart
    starts = False  # whether a row of tokens begins with the vocabulary's start id, from which its first is predicted

    def __post_init__(self):
        super().__post_init__()
        nominal = self.encoder.image_size
        if self.encoder.grid is not None and self.views[0].size != nominal:
            raise UserError(
                f"{type(self).__name__}: views of {self.views[0].size} pixels, but the encoder reads {nominal}: make "
                "augment's size the encoder's image_size"
            )
        if self.tokenizer is not None or self.vocabulary is not None:
            self._fit(self.vocabulary if self.tokenizer is None else self.tokenizer.vocabulary)
        PreprocessPair(super().preprocess, self.length)  # raises now rather than in a data worker

    def _fit(self, vocabulary):
        """Gives the module that reads captions rows for these ids."""
        what = f"{'text tower' if self.reader == 'text' else self.reader} of {type(self).__name__}"
        object.__setattr__(self, self.reader, fit_rows(getattr(self, self.reader), vocabulary, what, self.rows))
        object.__setattr__(self, "vocabulary", vocabulary)

    @property
    def length(self):
        """L: the tokens of a row."""
        return getattr(self, self.reader).length

    @property
    def data_vocabulary(self):
        return self.vocabulary if self.tokenizer is None else None

    def bind(self, vocabulary):
        return self if self.tokenizer is not None else dataclasses.replace(self, vocabulary=vocabulary)

    @functools.cached_property
    def preprocess(self):
        if self.vocabulary is None:
            name = type(self).__name__
            raise UserError(f"{name} has no vocabulary yet: objective.bind(vocabulary) gives it one, a run's data do")
        image = super().preprocess
        return PreprocessPair(image, self.length, self.tokenizer, self.vocabulary, self.starts, self.sources)

    def batch_spec(self, batch_size, phase=MAIN):
        return {
            **super().batch_spec(batch_size, phase),
            "tokens": jax.ShapeDtypeStruct((batch_size, self.length), jnp.int32),
            "cut": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
            **({"source": jax.ShapeDtypeStruct((batch_size,), jnp.int32)} if self.sources else {}),
        }

    def _images(self, batch, ctx, number=0):
        """[B, H, W, C], normalised: a random view of each picture in training, else the plain one. number: of the view,
        where an example has several pictures."""
        if not ctx.train:
            return self.view(batch)
        return self.views[0](batch["image"], self.aspect(batch), ctx.keys(f"view/{number}", batch["index"]))

    def aspect(self, batch):
        """[B]: the picture is a square already, and stays one where its aspect is ignored."""
        return jnp.ones_like(batch["aspect"]) if self.ignore_aspect else batch["aspect"]

    def _cut(self, batch):
        """The metric that all report: captions longer than a row."""
        return {"captions_cut": (jnp.sum(batch["cut"] * batch["mask"]), batch["mask"].sum())}

    def _keys(self, name, tower, ctx, index):
        return ctx.keys(name, index) if ctx.train and self.draws(tower) else None

    def tokenize(self, texts, tokenizer=None):
        """Texts -> int32 [n, L] as the text tower reads them; longer ones are cut, and keep their end token.

        tokenizer: the data's, where the objective has none of its own.
        """
        return np.stack([self.preprocess.tokens(text, tokenizer)[0] for text in texts])

    def check_pairs(self, batch_size):
        """Raises UserError for a batch in which there is no other pair."""
        if batch_size < 2:
            raise UserError(
                f"{type(self).__name__}: a batch of {batch_size} has no pair to tell from another: take at least 2"
            )

    @property
    def partition_rules(self):
        return PARTITION_RULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageText(WithCaptions, PairEmbedding):
    """Base of the objectives on pairs. A subclass gives `full_batch_loss`, on unit vectors {"image", "text"} [B, E].

    Parameters are trees `encoder`, `image_head`, `text` and `text_head`, and the scalars of `scalars`.

    text: a PooledText. With its `sources` a vector before a caption says which data set it is of (PairMixture), so that
        what is particular to one need not be learned by all (Saito et al. 2023, "Prefix Conditioning Unifies Language
        and Label Supervision", section 3.2). asked_as: the data set whose texts those of evaluation are read as; theirs
        are captions and not the labels' sentences.
    width: E. image_projection, text_projection: linear, affine (with a bias) or none, when the tower has that width.
    image_pool: encoder, what the encoder pools; or map, by attention over its patches.
    patch_drop: the share of a picture's patches that training leaves out, drawn anew each time (Li et al. 2023, "FLIP",
        section 3.1: 0.5 or 0.75, then a short tuning with 0); whole pictures are evaluated.

    Experiment.freeze = (("^encoder/", True),) is locked-image tuning (Zhai et al. 2022, "LiT", section 3.2).

    The loss is over all pairs of the batch: a caption that occurs twice in it is a negative of its own picture. With
    CLIP the two share what probability the caption gets; SigLIP labels one a yes and the other a no, and even chances
    are then the best answer. Rows of mask 0 are nobody's negatives.

    Raises UserError when towers, heads, views and tokenizer do not fit each other.
    """

    text: Any
    width: int = 512
    image_projection: str = "linear"
    text_projection: str = "linear"
    image_pool: str = "encoder"
    patch_drop: float = 0.0
    asked_as: int = 0

    POOLS = ("encoder", "map")

    full_batch = True

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        choose(f"{name}.image_pool", self.image_pool, dict.fromkeys(self.POOLS))
        for side, tower in (("image", self.encoder), ("text", self.text)):
            kind = getattr(self, f"{side}_projection")
            if choose(f"{name}.{side}_projection", kind, PROJECTIONS) is None and tower.features != self.width:
                raise UserError(
                    f"{name}: the {side} tower gives {tower.features} features and the shared space has {self.width}: "
                    f"set width={tower.features}, or {side}_projection='linear'"
                )
        if self.image_pool != "encoder" and self.encoder.grid is None:
            raise UserError(
                f"{name}.image_pool={self.image_pool!r} reads patches: choose a ViT, or image_pool='encoder'"
            )
        if not 0 <= self.patch_drop < 1 or self.patch_drop and (self.encoder.grid is None or not self._kept):
            raise UserError(
                f"{name}.patch_drop={self.patch_drop}: a share of a ViT's patches, from 0 to below 1, that leaves one"
            )

        if self.asked_as and not 0 < self.asked_as < self.sources:
            raise UserError(f"{name}.asked_as={self.asked_as}, and the text tower tells {self.sources} data sets apart")

    @property
    def sources(self):
        return self.text.sources

    @property
    def _kept(self):
        """How many patches of a picture training reads."""
        patches = int(np.prod(self.encoder.grid or (0,)))
        return patches - int(patches * self.patch_drop)

    def _fit(self, vocabulary):
        """Gives the text tower rows for these ids, and the one that it is pooled at."""
        super()._fit(vocabulary)
        name, text = type(self).__name__, self.text
        if text.pool == "end" and text.end_id is None:
            text = text.clone(end_id=vocabulary.end)
        if text.pool == "end" and text.end_id != vocabulary.end:
            raise UserError(
                f"{name}: captions end with the id {vocabulary.end} and the text tower is pooled at {text.end_id}: set "
                f"the tower's end_id={vocabulary.end}, or leave it out"
            )
        if text.pool == "highest" and vocabulary.end != vocabulary.size - 1:
            raise UserError(
                f"{name}: captions end with the id {vocabulary.end}, which is not the highest, and the text tower is "
                f"pooled at that: set the tower's pool='end'"
            )
        object.__setattr__(self, "text", text)

    def batch_spec(self, batch_size, phase=MAIN):
        self.check_pairs(batch_size)
        return super().batch_spec(batch_size, phase)

    def modules(self):
        by_map = self.image_pool == "map"
        dtype = self.encoder.dtype
        image = (1, int(np.prod(self.encoder.grid)), self.encoder.features) if by_map else (1, self.encoder.features)
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

    def encode(self, params, extra, batch, ctx):
        """({"image", "text"}: float32 [B, E], unit vectors; Loss with BatchNorm's moments and captions cut)."""
        variables = self.variables(params, extra)
        image, moments = self._image(variables, self._images(batch, ctx), ctx, batch["index"])
        text = self._text(variables, batch["tokens"], ctx, batch["index"], batch.get("source"))
        return {"image": image, "text": text}, Loss(metrics=self._cut(batch), stats=moments)

    def _image(self, variables, images, ctx, index=None):
        x, intermediates, moments = self._encoder(variables, images, ctx, index)
        x = intermediates["patches"] if self.image_pool == "map" else x
        x, _, _ = self.apply("image_head", variables, x, ctx=ctx)
        return l2_normalize(x), moments

    def _encoder(self, variables, images, ctx, index=None):
        """(pooled, intermediates, moments) of pictures; of some of their patches in training with `patch_drop`."""
        how = {"keys": self._keys("dropout/image", self.encoder, ctx, index)}
        if ctx.train and self.patch_drop:
            patches = int(np.prod(self.encoder.grid))
            noise = jax.vmap(lambda key: jax.random.uniform(key, (patches,)))(ctx.keys("patches", index))
            how["keep"] = jnp.argsort(noise, axis=1)[:, : self._kept]
        return self.apply("encoder", variables, images, ctx=ctx, **how)

    def _text(self, variables, tokens, ctx, index=None, source=None):
        """source: int32 [B], the data set of each text; None: read as those of `asked_as`."""
        keys, read = self._keys("dropout/text", self.text, ctx, index), (tokens,)
        if self.sources:
            read = tokens, jnp.full(len(tokens), self.asked_as) if source is None else source
        x, _, _ = self.apply("text", variables, *read, ctx=ctx, keys=keys)
        return l2_normalize(self.apply("text_head", variables, x, ctx=ctx)[0])

    # ---- For evaluation, search and notebooks ----------------------------------------------------------------------

    def embed_images(self, variables, images):
        """Normalised views [B, H, W, C] (see `view`) -> unit vectors float32 [B, E]."""
        return self._image(variables, images, EVALUATION)[0]

    def embed_texts(self, variables, tokens):
        """int32 [B, L] (see `tokenize`) -> unit vectors float32 [B, E]."""
        return self._text(variables, tokens, EVALUATION)

    def forward_flops(self, batch_spec):
        rows = batch_spec["mask"].size
        heads = self.modules()
        image, text = heads["image_head"][0], heads["text_head"][0]
        whole = self.encoder_flops(rows, self.views[:1])
        return {
            "encoder": whole if not self.patch_drop else self.encoder.flops(rows, self._kept),
            "image_head": image.flops(rows, self.encoder.features, self._kept),
            "text": self.text.flops(rows),
            "text_head": text.flops(rows, self.text.features),
            "pairs": 2 * rows * rows * self.width,
        }
