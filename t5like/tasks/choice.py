"""Classification by likelihood: the text that a language model finds the most probable (Brown et al. 2020, 2.4).

    choice = argmax_c sum_t log p(c[t] | x, c[<t])        or, by length, of its mean over c's tokens

over the texts c of a record to choose from, after its context x. What an EncoderDecoder reads of x is what it was
trained to write c for, such as x and a sentinel (capabilities.Continuing). Nothing is trained. With `shots` other
records stand before x, each with its right text: in-context learning (section 2.1, "few-shot"; examples are drawn anew
for each record, 2.4).
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from paradigm.capabilities import Continuing, Rewriting
from paradigm.errors import UserError
from paradigm.evaluator import Evaluator
from paradigm.metrics import Artefact
from paradigm.records import spread
from t5like import tables
from t5like.decode.likelihood import longest_of, totals
from t5like.decode.steps import room
from t5like.rows import lookup


@dataclasses.dataclass(frozen=True)
class MultipleChoice(Evaluator):
    """How often a model finds the right one of some texts the most probable, over the records of a file.

    records: a TextRecords, of which source, input, label, columns and exclude are read; all of its records are asked.
        input: the context's template.
    choices: the texts, templates too, one for each class; the label names the right one by its class, in `classes`;
        with no `classes` it is the choice itself, or its number from 0, in all records alike.
    count: records that are asked, spread evenly. length: tokens of context and choice; longer ones lose their
        beginning.
    shots: records that stand before the one that is asked; where all do not fit into `length`, as many as do. shown: a
        TextRecords that they are drawn from, by seed; None: those of `records`, but for the one that is asked.
        between: what ends each.

    Metrics: choice, choice_by_length, choice_chance, and with shots choice_shots, how many stood there in the mean.
    """

    records: Any
    choices: tuple[str, ...]
    classes: tuple[str, ...] = ()
    count: int = 200
    length: int = 256
    shots: int = 0
    shown: Any = None
    between: str = "\n\n"
    seed: int = 0

    needs = Continuing
    counts = ("count", "length")

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "choices", tuple(self.choices))  # gin gives lists
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        if len(self.choices) < 2 or self.classes and len(self.classes) != len(self.choices):
            raise UserError(
                f"MultipleChoice: {len(self.choices)} choices and {len(self.classes)} classes: give two choices or "
                "more, and as many classes or none"
            )
        if self.shots < 0 or self.shown is not None and not self.shots:
            raise UserError(f"MultipleChoice.shots={self.shots}: how many records stand before the one that is asked")

    def check(self, objective, data):
        super().check(objective, data)
        own = self.part(objective).objective
        rows, _ = self._rows(own, data)
        if (longest := max(map(longest_of, rows))) > (most := room(own)):
            raise UserError(
                f"MultipleChoice.length={self.length}: a context and its choice take {longest} positions, and the "
                f"model has {most} learned ones: shorten it"
            )
        if self.shots > (there := len(self._pool) - (self.shown is None)):
            raise UserError(f"MultipleChoice.shots={self.shots}, and there are {there} records to show: ask for fewer")

    def questions(self):
        """[(context, choices, number of the right one)]. Raises UserError for records that cannot be asked."""
        every = _read(self, self.records)
        return [every[i] for i in self._asked]

    @property
    def _asked(self):
        every = len(_read(self, self.records))
        return [int(i) for i in spread(every, min(self.count, every))]

    @property
    def _pool(self):
        """The questions that shots are drawn from."""
        return _read(self, self.records if self.shown is None else self.shown)

    def examples(self, number):
        """[text] of the records that stand before the asked one of this number, the nearest last."""
        pool, asked = self._pool, self._asked[number]
        draw = np.random.default_rng((self.seed, asked)).permutation(len(pool))
        chosen = [i for i in draw if self.shown is not None or i != asked][: self.shots]
        return [pool[i][0] + pool[i][1][pool[i][2]] + self.between for i in chosen]

    def run(self, objective, variables, data):
        """(numbers, a text "choices")."""
        part, asked = self.part(objective), self.questions()
        rows, stood = self._rows(part.objective, data)
        found = totals(part.objective, part.variables(variables), rows, part.objective.data_vocabulary)
        total = np.array([score.log_likelihood for score in found]).reshape(len(asked), -1)
        mean = total / np.array([score.tokens for score in found]).reshape(total.shape)
        right = np.array([answer for *_, answer in asked])
        shown = [f"{context[-200:]!r}\n  model: {texts[int(s.argmax())]!r}  truth: {texts[answer]!r}"
                 for (context, texts, answer), s in zip(asked[:8], total)]  # fmt: skip
        numbers = {"choice": (total.argmax(1) == right).mean(), "choice_by_length": (mean.argmax(1) == right).mean()}
        numbers |= {"choice_shots": float(np.mean(stood))} if self.shots else {}
        return {**numbers, "choice_chance": 1 / len(self.choices)}, [Artefact("choices", "text", "\n".join(shown))]

    def _rows(self, objective, data):
        """([Row of each choice of each question], how many shots stand before each question)."""
        asked, rows, stood = self.questions(), [], []
        fresh, behind = data.tokenizer.encode_batch, data.tokenizer.encode_behind
        for number, (context, texts, _) in enumerate(asked):
            alone = isinstance(objective, Rewriting) or not (context or self.shots)
            choices = (fresh if alone else behind)(texts)
            if not all(map(len, choices)):
                raise UserError(f"MultipleChoice: a choice after {context[-80:]!r} is empty: there is nothing to score")
            before = self.examples(number)
            parts = behind([*before, context])
            while before and sum(map(len, parts)) + max(map(len, choices)) > self.length:
                before, parts = before[1:], parts[1:]
            [parts[0]] = fresh([*before, context][:1])
            context = np.concatenate(parts).tolist()
            rows += [objective.continued(*self._cut(context, list(choice))) for choice in choices]
            stood.append(len(before))
        return rows, stood

    def _cut(self, context, text):
        """(ids of a context, ids of a text to choose), the context without its beginning where both are too long."""
        text = text[: self.length - 1]
        return context[max(0, len(context) + len(text) - self.length) :], text


@functools.lru_cache(maxsize=4)
def _read(evaluator, recipe):
    """The questions of all records of a recipe, see `questions`."""
    for name in ("input", "label"):
        if not getattr(recipe, name):
            raise UserError(f"MultipleChoice: the TextRecords of {recipe.source} has no {name}: set it")
    found, names = [], list(evaluator.classes) or [str(k) for k in range(len(evaluator.choices))]
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
            found.append((name, context, texts, label))
    if not found:
        raise UserError(f"MultipleChoice: source {recipe.source} has no record")
    # One reading for all records: of numbers to choose from, a label may be the choice in one and its place in another.
    spelt = not evaluator.classes and all(label in texts for _, _, texts, label in found)
    placed = all(label in names for *_, label in found)
    if spelt and placed and any(texts.index(label) != names.index(label) for _, _, texts, label in found):
        raise UserError(
            f"MultipleChoice: the labels in {recipe.label!r} of {recipe.source} may be choices or their numbers: set "
            f"classes to {tuple(names)} if they are numbers, or write the choices in the label otherwise"
        )
    for name, _, texts, label in found:
        if label not in (known := texts if spelt else names):
            known = known if evaluator.classes else [*known, *texts]
            raise UserError(f"MultipleChoice: {name} has the label {label!r}, which is none of {', '.join(known)}")
    return tuple((context, texts, (texts if spelt else names).index(label)) for _, context, texts, label in found)
