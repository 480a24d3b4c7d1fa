"""Classification by likelihood: the text that a language model finds the most probable (Brown et al. 2020, 2.4).

    choice = argmax_c sum_t log p(c[t] | x, c[<t])        or, by length, of its mean over c's tokens

over the texts c of a record to choose from, after its context x. Nothing is trained.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from paradigm.capabilities import Generating
from paradigm.errors import UserError
from paradigm.evaluator import Evaluator
from paradigm.metrics import Artefact
from paradigm.records import spread
from t5like import tables
from t5like.decode import score_rows
from t5like.rows import lookup


@dataclasses.dataclass(frozen=True)
class MultipleChoice(Evaluator):
    """How often a Decoder finds the right one of some texts the most probable, over the records of a file.

    records: a TextRecords, of which source, input, label, columns, valid_glob, exclude and split are read; all of its
        records are asked. input: the context's template.
    choices: the texts, templates too, one for each class; the label names the right one by its class, in `classes`;
        with no `classes` it is the choice itself, or its number from 0.
    count: records that are asked, spread evenly. length: tokens of context and choice; longer ones lose their
        beginning.
    """

    records: Any
    choices: tuple[str, ...]
    classes: tuple[str, ...] = ()
    count: int = 200
    length: int = 256

    needs = Generating

    def __post_init__(self):
        object.__setattr__(self, "choices", tuple(self.choices))  # gin gives lists
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        if len(self.choices) < 2 or self.classes and len(self.classes) != len(self.choices):
            raise UserError(
                f"MultipleChoice: {len(self.choices)} choices and {len(self.classes)} classes: give two choices or "
                "more, and as many classes or none"
            )

    def check(self, objective, data):
        super().check(objective, data)
        self.questions()

    def questions(self):
        """[(context, choices, number of the right one)]. Raises UserError for records that cannot be asked."""
        return list(_questions(self))

    def run(self, objective, variables, data):
        """(choice, choice_by_length, choice_chance, a text "choices")."""
        part, asked, encode = self.part(objective), self.questions(), data.tokenizer.encode
        rows = [self._row(encode(context), encode(text)) for context, texts, _ in asked for text in texts]
        known, own = part.objective.data_vocabulary, part.variables(variables)
        found = score_rows(part.objective, own, *zip(*rows), known, part.objective.prefix)
        total = np.array([score.log_likelihood for score in found]).reshape(len(asked), -1)
        mean = total / np.array([len(chosen) for _, chosen in rows]).reshape(total.shape)
        right = np.array([answer for *_, answer in asked])
        shown = [f"{context[-200:]!r}\n  model: {texts[int(s.argmax())]!r}  truth: {texts[answer]!r}"
                 for (context, texts, answer), s in zip(asked[:8], total)]  # fmt: skip
        numbers = {"choice": (total.argmax(1) == right).mean(), "choice_by_length": (mean.argmax(1) == right).mean()}
        return {**numbers, "choice_chance": 1 / len(self.choices)}, [Artefact("choices", "text", "\n".join(shown))]

    def _row(self, context, text):
        """(ids of a context, ids of a text to choose), the context without its beginning where both are too long."""
        text = text[: self.length - 1]
        return context[max(0, len(context) + len(text) - self.length) :], text


@functools.lru_cache(maxsize=4)
def _questions(evaluator):
    recipe, found = evaluator.records, []
    listing = tables.list_parts(recipe.source, recipe.valid_glob, recipe.exclude, recipe.columns)
    for part in listing.pieces:
        for name, record in tables.read(part, recipe.columns):
            try:
                if isinstance(record, Exception):
                    raise record
                context = tables.render(recipe.input, record)
                texts = [tables.render(choice, record) for choice in evaluator.choices]
                label = tables.class_of(lookup(record, recipe.label), recipe.label)
            except ValueError as error:
                raise UserError(f"MultipleChoice: {name} {error}") from error
            names = evaluator.classes or (texts if label in texts else [str(k) for k in range(len(texts))])
            if label not in names:
                raise UserError(f"MultipleChoice: {name} has the label {label!r}, which is none of {', '.join(names)}")
            found.append((context, texts, list(names).index(label)))
    if not found:
        raise UserError(f"MultipleChoice: source {recipe.source} has no record")
    return tuple(found[int(i)] for i in spread(len(found), min(evaluator.count, len(found))))
