"""What only some objectives can do, by name, and the one function that asks for it.

An objective declares a capability by inheriting it. An evaluator (or `launch.load`) asks with `ask`, which looks
through combinators as well, however deep, and gives a Part: the objective that has it, and how its variables
and batches are taken from those of the whole.
"""

import dataclasses
from typing import Any, NamedTuple

from paradigm import combine
from paradigm.errors import UserError
from paradigm.objective import Objective


class Capability:
    """Base of the capabilities. can: what such an objective does, for the sentence "X cannot ..."."""

    can = ""


class HasModel(Capability):
    """model: the Flax module that a notebook asks for."""

    can = "show one model"
    model: Any


class TextScoring(Capability):
    """Scores tokens of text one by one, so that other ways of scoring the same tokens can stand beside it.

    Its batches hold `text_bytes` float32 [B].
    """

    can = "score tokens of text"

    def scored(self, batch):
        """(targets int [B, L], weights float32 [B, L], is_text bool [B, L]) of a numpy or jax batch."""
        raise NotImplementedError


class TextFeatures(HasModel):
    """Reads texts by a model that has a vector for each token. model: an Encoder, a Decoder or an EncoderDecoder.

    known: the vocabulary.
    """

    can = "encode texts"
    known: Any


class Infilling(HasModel):
    """Writes what blanks of a text hide (t5like/decode/blanks.py)."""

    can = "fill blanks"

    def with_blanks(self, ids, vocabulary):
        """What is decoded for a text whose blanks are sentinels, a list of ids: arguments of t5like.decode.decode_rows
        for one row, and `given`, how many tokens are written beside those that fill blanks, where there are any."""
        raise NotImplementedError

    def fillings(self, ids, found, vocabulary):
        """The ids that fill each blank of such a text, in its order, of what was written; None where that says none."""
        raise NotImplementedError


class SpanFilling(Infilling):
    """The same, one sentinel of a batch after the other: its batches are a text's (t5like/corrupt.py), and `model` is
    an EncoderDecoder."""

    can = "fill the spans that sentinels hide"


class SentenceScoring(HasModel):
    """Gives each token of a sentence a probability: from those before it, or from all others, where it is hidden."""

    can = "score sentences"

    def sentence(self, ids):
        """How the model is asked for the tokens of a sentence, a list of ids without cls, sep or start: a list of Row
        (t5like/decode/likelihood.py) whose targets are, one after the other, these tokens."""
        raise NotImplementedError


class Continuing(HasModel):
    """Gives each token of a text that goes on from another a probability, from left to right."""

    can = "say how probable a text is after another"

    def continued(self, prompt, ids):
        """How the model is asked for the tokens of `ids` behind those of `prompt`, lists of ids without start or end: a
        Row (t5like/decode/likelihood.py) whose targets are `ids`."""
        raise NotImplementedError


class Generating(SentenceScoring, Continuing, TextScoring):
    """Predicts a text from left to right. model: a Decoder. prefix: whether it sees a prompt both ways.

    Its batches hold `inputs`, `targets` and `segments` int32 [B, L] (t5like/corrupt.py); targets are what is scored.
    """

    can = "continue a text"
    prefix: bool


class FillingMasks(SentenceScoring):
    """Finds hidden tokens from those on both sides. model: an Encoder."""

    can = "fill masks"


class Classified(NamedTuple):
    """What is said of one text or picture. label: a name, the names of those above even odds, or a number. chances:
    {name: probability}, likeliest first."""

    label: Any
    chances: dict


class Classifying(HasModel):
    """Gives texts labels. kind: class, classes or number (t5like/labels.py). Its batches hold `label`."""

    can = "classify texts"
    kind: str

    def scores(self, variables, batch, ctx):
        """float32 [B, C] of a batch as `preprocess` makes them: logits, or one number."""
        raise NotImplementedError


class Tagging(HasModel):
    """Gives words tags. Its batches hold `tags` int32 [B, L], -1 where no word speaks."""

    can = "tag words"

    def scores(self, variables, batch, ctx):
        """float32 [B, L, C] of a batch as `preprocess` makes them: logits."""
        raise NotImplementedError


class Answering(HasModel):
    """Finds answers in a context. Its batches hold `words` int32 [B, L]: a place's word in the context, or -1."""

    can = "find answers"

    def scores(self, variables, batch, ctx):
        """(first place, last place) int32 [B] of a batch as `preprocess` makes them; 0, 0 for no answer."""
        raise NotImplementedError


class Rewriting(HasModel):
    """Writes a text for a text. model: an EncoderDecoder or a Decoder."""

    can = "write a text for a text"

    def rewrite(self, variables, inputs, sampling, seed, new):
        """Token ids, a list of int arrays, of what is written for each of some lists of ids. sampling: or beams, see
        t5like.decode."""
        raise NotImplementedError


class ImageFeatures(HasModel):
    """Has an encoder of pictures, in the module `encoder`.

    views: an Augment for each view. host_image_size: pixels a side that `preprocess` gives. Its batches hold `image`,
    `aspect` and `label`.
    """

    can = "encode pictures"
    encoder: Any
    host_image_size: int

    def view(self, batch):
        """The plain view of a batch's pictures, float32 [B, H, W, C], normalised."""
        raise NotImplementedError

    def features(self, variables, images):
        """float32 [B, H, W, C], normalised -> (pooled [B, D], intermediates), in evaluation."""
        raise NotImplementedError


class ClassifyingPictures(ImageFeatures):
    """Gives pictures one of some classes."""

    can = "classify pictures"

    def logits(self, variables, images):
        """Normalised pictures [B, H, W, C] -> float32 [B, classes], in evaluation."""
        raise NotImplementedError


class PairEmbedding(Capability):
    """Embeds pictures and texts in one space. views: an Augment for each view."""

    can = "embed pictures and texts"

    def view(self, batch):
        """The plain view of a batch's pictures, float32 [B, H, W, C], normalised."""
        raise NotImplementedError

    def aspect(self, batch):
        """float32 [B], width / height of a batch's pictures as every view of them takes it to be."""
        raise NotImplementedError

    def embed_images(self, variables, images):
        """float32 [B, H, W, C], normalised -> unit vectors float32 [B, E]."""
        raise NotImplementedError

    def embed_texts(self, variables, tokens):
        """int32 [B, L] -> unit vectors float32 [B, E]."""
        raise NotImplementedError

    def scale(self, params):
        """[] what cosines of pictures and texts are multiplied by."""
        raise NotImplementedError

    def tokenize(self, texts, tokenizer=None):
        """Texts -> int32 [n, L]. tokenizer: the data's, where the objective has none of its own."""
        raise NotImplementedError


class CaptionScoring(Capability):
    """Scores tokens of captions one by one."""

    can = "score captions"

    def scored(self, batch):
        """(inputs int [B, L], targets int [B, L], weights float32 [B, L]) of a batch's captions."""
        raise NotImplementedError


class Captioning(CaptionScoring):
    """Writes captions of pictures: its module `reader` decodes what `see` gives (t5like.decode with a source).

    reader: the module's name. prefix: whether it sees a prompt both ways. length: tokens of a row of captions, the
    start included. tokenizer: one of its own, or None for the data's.
    """

    can = "caption pictures"
    reader: str
    length: int
    prefix = False
    tokenizer: Any

    def view(self, batch):
        """The plain view of a batch's pictures, float32 [B, H, W, C], normalised."""
        raise NotImplementedError

    def see(self, variables, images):
        """float32 [B, H, W, C], normalised -> [B, S, D], what the decoder reads of a picture."""
        raise NotImplementedError


class Segmenting(ImageFeatures):
    """Finds the class of every pixel. names: of the classes, or (). Its batches hold `regions` too."""

    can = "segment pictures"
    classes: int
    names: tuple[str, ...]

    def segment(self, variables, images):
        """float32 [B, H, W, C], normalised -> int32 [B, H, W]: the class of each pixel."""
        raise NotImplementedError

    def regions(self, batch):
        """int32 [B, H, W]: the true classes of a batch's plain view; -1 where nothing is labelled."""
        raise NotImplementedError


class Reconstructing(ImageFeatures):
    """Makes pictures whole again."""

    can = "reconstruct pictures"

    def reconstruct(self, variables, images, keys):
        """float32 [B, H, W, C], normalised, keys [B] -> {"masked", "reconstructed"}, pictures alike; what hides nothing
        gives no "masked"."""
        raise NotImplementedError


class Tokenizing(ImageFeatures):
    """Makes an id of each patch. codes: how many there are."""

    can = "make ids of patches"
    codes: int

    def ids(self, variables, images):
        """float32 [B, H, W, C], normalised -> int32 [B, N]."""
        raise NotImplementedError

    def decoded(self, variables, ids):
        """int32 [B, N] -> pictures [B, H, W, C], normalised; None where something else than pixels is made of them."""
        raise NotImplementedError


class GeneratingImages(ImageFeatures):
    """Writes pictures as rows of ids, from left to right and from top to bottom."""

    can = "generate pictures"

    def ids(self, variables, images):
        """float32 [B, H, W, C], normalised -> int32 [B, N]."""
        raise NotImplementedError

    def generate(self, variables, ids, known, keys, temperature=1.0):
        """ids [B, N], of which the first `known` stay, keys [B] -> ids [B, N]."""
        raise NotImplementedError

    def pictures(self, variables, ids):
        """int32 [B, N] -> pixels float32 [B, H, W, C] in [0, 1]."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Part:
    """An objective inside another one. names: of the parts that lead to it; () where it is the whole itself."""

    whole: Any
    objective: Any
    names: tuple[str, ...] = ()

    def variables(self, variables):
        """Its variables, of those that the whole's `variables` gave."""
        for name in self.names:
            variables = combine.part_variables(variables, name)
        return variables

    def batch(self, batch):
        """Its batch, of one of the whole's."""
        for name in self.names:
            batch = combine.part_batch(batch, name)
        return batch

    @property
    def phase(self):
        """The phase of the whole whose batches it has a share in; None for the first one."""
        return next((name for name in self.names[:1] if name in self.whole.phases()), None)

    def batches(self, data):
        """Its validation batches, numpy, of the data that an evaluator is given."""
        return map(self.batch, data.batches(self.phase))

    def examples(self, data, count):
        """A batch, numpy, of `count` of its validation examples, spread evenly over all; of fewer where there are no
        more."""
        return self.batch(data.examples(count, self.phase))


def parts(objective):
    """Parts of an objective: itself, and all that it is made of, depth first."""

    def walk(one, names):
        yield Part(objective, one, names)
        for name, inner in one.parts:
            yield from walk(inner, (*names, name))

    return walk(objective, ())


def ask(capability, objective, who, instead=None):
    """The first Part of the objective that has the capability.

    Args:
        capability: one of the classes above. who: the evaluator or function that needs it. instead: what a person may
            do where it is not to be had; None: leave the evaluator out.

    Raises:
        UserError: no part has it. It says which objectives do, of those that are imported.
    """
    for part in parts(objective):
        if isinstance(part.objective, capability):
            return part
    names = sorted({kind.__name__ for kind in inheritors(capability)})
    able = f"{', '.join(names)} can" if names else "no objective that is imported can"
    instead = instead or f"take {who} from Experiment.evaluators"
    raise UserError(f"{who}: {type(objective).__name__} cannot {capability.can}, {able}: {instead}")


def inheritors(kind):
    """The public objectives among the subclasses: those that give a loss, and are no mere bases."""
    for one in kind.__subclasses__():
        yield from inheritors(one)
        if issubclass(one, Objective) and not one.__name__.startswith("_"):
            if (one.loss, one.full_batch_loss) != (Objective.loss, Objective.full_batch_loss):
                yield one
