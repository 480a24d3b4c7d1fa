"""Captions that a model writes: what they are worth, and what they look like under their pictures."""

import dataclasses
import functools

import jax
import numpy as np

from multimodal.caption_scores import SCORES
from multimodal.visualize import captioned
from multimodal.zero_shot import captions_at, check_captions
from paradigm.capabilities import Captioning, CaptionScoring
from paradigm.dataset import Dataset
from paradigm.errors import UserError
from paradigm.metrics import Artefact
from paradigm.partition import constrain
from paradigm.records import Subset
from t5like.baselines import CountingBaseline, kneser_ney
from t5like.decode import Sampling, Writing, decode_rows
from t5like.tokenizers.base import check_texts
from vision.ask import batches, pictures
from vision.probe import BATCH

LEARN = 20_000  # captions that the bigram baseline counts at most


@functools.lru_cache(maxsize=8)
def _seen(objective):
    see = lambda variables, batch: objective.see(variables, objective.view(batch))
    return jax.jit(lambda variables, batch: constrain(see(variables, batch), None, None, None))


def write(objective, variables, batch, tokenizer, prompts, sampling, max_new_tokens=None, seed=0):
    """Captions of a batch's pictures: a list of str, each prompt and what follows it.

    Args:
        objective: one that is Captioning. variables: of objective.apply.
        batch: {"image", "aspect"}, as `preprocess` gives them.
        tokenizer: the data's, where the objective has none of its own. prompts: a str for each picture; "" for none.
        sampling: Sampling. max_new_tokens: None is as many as there is room for.

    Raises:
        UserError: a tokenizer of another vocabulary, or a prompt that leaves no room.
    """
    tokenizer, ids, room = _begun(objective, tokenizer, prompts)
    new = room if max_new_tokens is None else max_new_tokens
    source = _seen(objective)(variables, {name: batch[name] for name in ("image", "aspect")})
    how = {"prefix": objective.prefix, "source": source, "name": objective.reader}
    sampling = dataclasses.replace(sampling, vocab_size=tokenizer.vocabulary.size)
    found = decode_rows(objective, variables, ids, new, sampling, tokenizer.vocabulary, seed, **how)
    return [tokenizer.decode(np.r_[row, more]).strip() for row, more in zip(ids, found)]


def _begun(objective, tokenizer, prompts):
    """(the tokenizer, ids of the prompts, how many may follow). Raises UserError as `write`."""
    tokenizer = objective.tokenizer or tokenizer
    v, rows = tokenizer.vocabulary, objective.modules()[objective.reader][0].vocab_size
    if v.size > rows or objective.vocabulary is not None and v.size != objective.vocabulary.size:
        known = rows if objective.vocabulary is None else objective.vocabulary.size
        raise UserError(f"captions: the tokenizer has {v.size} ids, but the model {known}; take the one of the run")
    ids = tokenizer.encode_batch(prompts)
    room = objective.length - 1 - max(map(len, ids))
    if room < 1:
        raise UserError(
            f"captions: a prompt of {max(map(len, ids))} tokens leaves no room in captions of {objective.length - 1}"
        )
    return tokenizer, ids, room


def caption(objective, variables, tokenizer, images, prompt="", temperature=0.0, top_k=None, top_p=None, seed=0,
            max_new_tokens=None):  # fmt: skip
    """Captions of pictures: a list of str; or of one picture, a str.

    Args:
        images: as of vision.ask.pictures. prompt: how each begins. temperature, top_k, top_p: see Sampling.
        The rest as in `write`.

    Raises:
        UserError: pictures of other channels than the encoder reads, and what `write` raises.
    """
    check_texts("caption", [prompt], "a prompt is a text")
    images, alone = pictures(images, objective.encoder.channels)
    sampling, found = Sampling(temperature, top_k, top_p), []
    for batch in batches(images, objective.preprocess.image):
        prompts = [prompt] * len(batch["image"])
        found += write(objective, variables, batch, tokenizer, prompts, sampling, max_new_tokens, seed + len(found))
    return found[0] if alone else found


@dataclasses.dataclass(frozen=True)
class Captions(Writing):
    """bleu4, rouge_l and cider of captions of held-out pictures, against all that the data have for each, and some of
    them under their pictures (see caption_scores.py).

    `chance/NAME` is the score of captions that are of another picture of the split.

    split: whose pictures; another's than valid has its name before that of each score. images: how many, spread
    evenly; None for all. shown: how many are pictured. temperature, top_k, top_p: see Sampling. seed: of all draws.
    prompt: how each caption begins; it is scored with it.
    """

    split: str = "valid"
    images: int | None = 500
    shown: int = 8
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    prompt: str = ""
    seed: int = 0

    needs = Captioning
    counts = ("images", "shown")

    def check(self, objective, data):
        super().check(objective, data)
        check_captions(data.records(self.split))
        _begun(self.part(objective).objective, data.tokenizer, [self.prompt])

    def run(self, objective, variables, data):
        part = self.part(objective)
        objective, variables = part.objective, part.variables(variables)
        source = Subset.drawn(data.records(self.split), self.images, self.seed)
        dataset = Dataset(source, objective.preprocess, min(BATCH, len(source)), train=False)
        found, places = [], []
        for step in range(len(dataset)):
            batch = dataset.batch(step)
            prompts = [self.prompt] * len(batch["mask"])
            seed = self.seed + step * len(prompts)  # rows of another batch draw by themselves
            texts = write(objective, variables, batch, data.tokenizer, prompts, self.sampling(), seed=seed)
            real = batch["mask"] > 0
            found += [text for text, one in zip(texts, real) if one]
            places += (batch["index"][real].astype(np.int64) @ np.array([1 << 32, 1])).tolist()
        truth = [captions_at(source, place) for place in places]
        other = [truth[(k + len(truth) // 2) % len(truth)][0] for k in range(len(truth))]
        before = "" if self.split == "valid" else f"{self.split}/"
        numbers = {f"{before}{name}": score(found, truth) for name, score in SCORES.items()}
        numbers |= {f"chance/{before}{name}": score(other, truth) for name, score in SCORES.items()}
        pictures = [source[int(place)]["image"] for place in places[: self.shown]]
        shown = captioned(pictures, found, [texts[0] for texts in truth])
        return numbers, [Artefact(f"{before}captions", "image", shown)]


@dataclasses.dataclass(frozen=True)
class BigramCaptions(CountingBaseline):
    """`bigram/caption_nll`: nats a token of held-out captions by the token before alone, the picture unseen: what
    `caption_nll` has to beat. Kneser-Ney, as BigramBaseline. captions: how many of training are counted at most."""

    captions: int = LEARN

    needs = CaptionScoring
    counts = ("captions",)

    def compute(self, part, data):
        objective, train = part.objective, data.records("train")
        v, pairs = objective.vocabulary, []
        for k in range(min(len(train), self.captions)):
            text = train.captions(k * len(train) // min(len(train), self.captions))[0]
            row, _ = objective.preprocess.tokens(text, data.tokenizer)
            inputs, targets, weights = objective.scored({"tokens": row[None], "mask": np.ones(1)})
            pairs.append((inputs.astype(np.int64) * v.size + targets)[weights > 0])
        score, nats, count = kneser_ney(np.concatenate(pairs), v.size), 0.0, 0.0
        for batch in part.batches(data):
            inputs, targets, weights = objective.scored(batch)
            nats += float((score(inputs.astype(np.int64), targets) * weights).sum())
            count += float(weights.sum())
        return {"bigram/caption_nll": nats / count}
