"""Two pictures and a sentence that is true of one of them: of which? What NLVR2 asks (Suhr et al. 2019, "A Corpus for
Reasoning about Natural Language Grounded in Photographs"), of towers that were not trained for it.

The sentence is one picture's caption; the other picture is the one whose caption shares most words with it, while each
of the two has a word that the other lacks: "a red circle" beside "a red square". Who knows colours and not shapes
guesses, and chance is a half. Ties count as wrong.
"""

import dataclasses

import numpy as np

from multimodal.zero_shot import TIE, Compared, captions_at, check_captions, embed_pictures, embed_texts
from paradigm.errors import UserError
from paradigm.records import Subset


@dataclasses.dataclass(frozen=True)
class TwoPictures(Compared):
    """`two_pictures`: the share of sentences that are nearer to the picture that they are true of.

    split: whose pairs. pairs: how many are used, spread evenly; None for all. random: the comparison with untrained
    towers. seed: of both.
    """

    split: str = "valid"
    pairs: int | None = 1000
    random: bool = True
    seed: int = 0

    counts = ("pairs",)

    def check(self, objective, data):
        super().check(objective, data)
        check_captions(data.records(self.split))
        source = Subset.drawn(data.records(self.split), self.pairs, self.seed)
        self._asked([captions_at(source, place)[0] for place in range(len(source))])

    def _asked(self, captions):
        asked, others = most_alike(captions)
        if not len(asked):
            raise UserError(f"TwoPictures: no two captions of the {self.split} split differ in a word each")
        return asked, others

    def scores(self, objective, variables, data):
        source = Subset.drawn(data.records(self.split), self.pairs, self.seed)
        pictures, _, places = embed_pictures(objective, variables, source)
        captions = [captions_at(source, place)[0] for place in places]
        asked, others = self._asked(captions)
        texts = embed_texts(objective, variables, [captions[k] for k in asked], data.tokenizer)
        true, false = (np.sum(pictures[k] * texts, 1) for k in (asked, others))
        before = "" if self.split == "valid" else f"{self.split}/"
        return {f"{before}two_pictures": float(np.mean(true > false + TIE))}, {f"{before}two_pictures": 0.5}


def most_alike(captions):
    """(int [n], int [n]): captions, and for each the other that shares most words with it (by the cosine of their sets
    of words), where each has a word that the other lacks; the first of several. Captions without such a one are left
    out."""
    sets = [frozenset(caption.lower().replace(",", " ").split()) for caption in captions]
    words = {word: k for k, word in enumerate(sorted(frozenset().union(*sets)))}
    bags = np.zeros((len(sets), len(words)), np.float32)
    for bag, own in zip(bags, sets):
        bag[[words[word] for word in own]] = 1
    shared, sizes = bags @ bags.T, bags.sum(1)
    differ = (shared < sizes[:, None]) & (shared < sizes)
    alike = np.where(differ, shared / np.sqrt(np.maximum(sizes[:, None] * sizes, 1)), -1.0)
    asked = np.flatnonzero(differ.any(1))
    return asked, alike[asked].argmax(1)
