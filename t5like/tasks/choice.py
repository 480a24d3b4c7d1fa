"""Classification by likelihood: the text that a language model finds the most probable (Brown et al. 2020, 2.4).

    choice = argmax_c sum_t log p(c[t] | x, c[<t])        or, by length, of its mean over c's tokens

over the texts c of a record to choose from, after its context x. Nothing is trained.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from paradigm.capabilities import Generating
from paradigm.errors import UserError
from paradigm.evaluator import Evaluator
from paradigm.losses import chunked_cross_entropy
from paradigm.metrics import Artefact
from paradigm.objective import EVALUATION
from paradigm.partition import constrain
from paradigm.records import spread
from t5like import rows, tables

TOGETHER = 16  # rows that are scored at once


@functools.partial(jax.jit, static_argnums=0)
def _log_likelihoods(objective, variables, inputs, targets, weights, prefix):
    """float32 [B]: the sum of log p of the targets that have weight."""
    visible = prefix if objective.prefix else None
    how = {"prefix": visible, "ctx": EVALUATION, "method": "hidden"}
    hidden = objective.apply("model", variables, inputs, **how)[0]
    kernel = objective.output_kernel(variables["params"])
    return constrain(-(chunked_cross_entropy(hidden, kernel, targets, weights).nll * weights).sum(1), None)


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
        part, tokenizer = self.part(objective), data.tokenizer
        known, asked = part.objective.data_vocabulary, self.questions()
        own = part.variables(variables)
        made = [_row(tokenizer, known, self.length, context, text) for context, texts, _ in asked for text in texts]
        scores = []
        for start in range(0, len(made), TOGETHER):
            some = made[start : start + TOGETHER]
            batch = [np.stack(column) for column in zip(*some, *[some[-1]] * (TOGETHER - len(some)))]
            scores += np.asarray(_log_likelihoods(part.objective, own, *batch))[: len(some)].tolist()
        total = np.array(scores).reshape(len(asked), -1)
        mean = total / np.array([row[2].sum() for row in made]).reshape(total.shape)
        right = np.array([answer for *_, answer in asked])
        shown = [f"{context[-200:]!r}\n  model: {texts[int(s.argmax())]!r}  truth: {texts[answer]!r}"
                 for (context, texts, answer), s in zip(asked[:8], total)]  # fmt: skip
        numbers = {"choice": (total.argmax(1) == right).mean(), "choice_by_length": (mean.argmax(1) == right).mean()}
        return {**numbers, "choice_chance": 1 / len(self.choices)}, [Artefact("choices", "text", "\n".join(shown))]


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
                label = tables.class_of(rows.lookup(record, recipe.label), recipe.label)
            except ValueError as error:
                raise UserError(f"MultipleChoice: {name} {error}") from error
            names = evaluator.classes or (texts if label in texts else [str(k) for k in range(len(texts))])
            if label not in names:
                raise UserError(f"MultipleChoice: {name} has the label {label!r}, which is none of {', '.join(names)}")
            found.append((context, texts, list(names).index(label)))
    if not found:
        raise UserError(f"MultipleChoice: source {recipe.source} has no record")
    return tuple(found[int(i)] for i in spread(len(found), min(evaluator.count, len(found))))


def _row(tokenizer, vocabulary, length, context, text):
    """(inputs, targets int32 [L], weights float32 [L], prefix int32 []) of a context and a text to choose."""
    before, chosen = tokenizer.encode(context), tokenizer.encode(text)[: length - 1]
    before = before[max(0, len(before) + len(chosen) - length) :]
    tokens = np.concatenate([before, chosen])
    pad = lambda row: np.pad(row, (0, length - len(row)), constant_values=vocabulary.filler).astype(np.int32)
    weights = np.zeros(length, np.float32)
    weights[len(before) : len(tokens)] = 1
    return pad(np.r_[vocabulary.start, tokens[:-1]]), pad(tokens), weights, np.int32(len(before) + 1)
