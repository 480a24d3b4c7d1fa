"""Evaluators of tasks with a head: what their loss cannot say as a mean, and a table or some texts to look at."""

import collections
import dataclasses
import functools
import re

import jax
import numpy as np

from paradigm.capabilities import Answering, Classifying, Tagging
from paradigm.evaluator import Evaluator
from paradigm.metrics import Artefact, confusion
from paradigm.objective import EVALUATION
from paradigm.partition import constrain
from t5like import labels, rows, tables
from t5like.tasks import counts

WHOLE = 20  # classes of which the table of confusions is shown whole; of more, as many of the most frequent ones


@functools.partial(jax.jit, static_argnums=0)
def scores_of(objective, variables, batch):
    """objective.scores in evaluation, whole in every process."""
    return jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), objective.scores(variables, batch, EVALUATION))


def scored(part, variables, data):
    """(batch, scores) of each validation batch, numpy, without the rows of padding."""
    own = part.variables(variables)
    for batch in part.batches(data):
        real = batch["mask"] > 0
        found = jax.device_get(scores_of(part.objective, own, batch))
        yield {name: x[real] for name, x in batch.items()}, jax.tree.map(lambda x: np.asarray(x)[real], found)


def text_of(batch, row, tokenizer):
    """The text of a row of `inputs`."""
    return tokenizer.decode(batch["inputs"][row][batch["segments"][row] > 0]).replace("\n", "⏎")


@dataclasses.dataclass(frozen=True)
class ClassificationScores(Evaluator):
    """Macro F1, Matthews' and other coefficients of labels, and who is taken for whom.

    class: macro_f1, matthews. classes: micro_f1, macro_f1. number: pearson, spearman. count: texts that are shown with
    what is wrong of them.
    """

    count: int = 8

    needs = Classifying

    def run(self, objective, variables, data):
        """(the numbers above, a table "confusion" of classes, a text "mistakes")."""
        part = self.part(objective)
        truth, found, texts = [], [], []
        for batch, scores in scored(part, variables, data):
            label = batch["label"]
            known = ~np.isnan(label) if part.objective.kind == "number" else label.reshape(len(label), -1)[:, 0] >= 0
            truth.append(label[known])
            found.append(scores[known])
            wrong = self._wrong(part.objective.kind, label, scores) & known
            texts += [
                (text_of(batch, row, data.tokenizer), label[row], scores[row])
                for row in np.flatnonzero(wrong)[: self.count - len(texts)]
            ]
        truth, found = np.concatenate(truth), np.concatenate(found)
        name = lambda value: self._named(part.objective.kind, value, data.labels)
        shown = "\n".join(f"{text}\n  model: {name(ours)}  truth: {name(label)}" for text, label, ours in texts)
        artefacts = [Artefact("mistakes", "text", shown)] if texts else []
        if part.objective.kind == "number":
            return counts.number_scores(truth, found[:, 0]), artefacts
        if part.objective.kind == "classes":
            return counts.label_scores(counts.label_counts(truth > 0, found > 0)), artefacts
        table = confusion(truth, found.argmax(1), part.objective.classes)
        scores = counts.class_scores(table)
        del scores["accuracy"]  # the loss says it
        return scores, [*artefacts, Artefact("confusion", "table", confusions(table, data.labels))]

    @staticmethod
    def _wrong(kind, label, scores):
        if kind == "number":
            return np.abs(scores[:, 0] - label) > np.nanstd(label)
        return scores.argmax(1) != label if kind == "class" else ((scores > 0) != (label > 0)).any(1)

    @staticmethod
    def _named(kind, value, labels):
        if kind == "number":
            return f"{float(np.ravel(value)[0]):.3g}"
        if kind == "classes":
            return ", ".join(labels[k] for k in np.flatnonzero(value > 0)) or "none"
        return labels[int(np.argmax(value)) if np.ndim(value) else int(value)]


def confusions(table, labels):
    """The rows of a table: all of it, or the most frequent confusions of many classes."""
    if len(labels) <= WHOLE:
        return [["truth \\ found", *labels], *([name, *row] for name, row in zip(labels, table.tolist()))]
    wrong = table * (1 - np.eye(len(table), dtype=table.dtype))
    order = [divmod(int(k), len(table)) for k in np.argsort(-wrong, axis=None, kind="stable")[:WHOLE]]
    kept = [[labels[i], labels[j], int(wrong[i, j])] for i, j in order if wrong[i, j]]
    return [["truth", "found", "times"], *kept]


@dataclasses.dataclass(frozen=True)
class TaggingScores(Evaluator):
    """Entity F1 of tags in BIO or the like, over all entities and as the mean over their types; of other tags macro F1.

    Of the words that are read. count: texts that are shown with what is wrong of them.
    """

    count: int = 8

    needs = Tagging

    def run(self, objective, variables, data):
        """(entity_f1, entity_precision, entity_recall, entity_macro_f1, or macro_f1; a text "mistakes")."""
        part, names_of = self.part(objective), data.labels
        with_entities = all(map(counts.is_entity_tag, names_of))
        entities, table, shown = collections.Counter(), np.zeros((len(names_of),) * 2, np.int64), []
        for batch, scores in scored(part, variables, data):
            for row, (tags, ours) in enumerate(zip(batch["tags"], scores.argmax(2))):
                truth, found = tags[tags >= 0], ours[tags >= 0]
                table += confusion(truth, found, len(names_of))
                names = [[names_of[k] for k in some] for some in (truth, found)]
                if with_entities:
                    entities += counts.entity_counts(*names)
                if len(shown) < self.count and (truth != found).any():
                    wrong = [f"{k}: {b} for {a}" for k, (a, b) in enumerate(zip(*names), 1) if a != b]
                    shown.append(f"{text_of(batch, row, data.tokenizer)}\n  word {', '.join(wrong)}")
        scores = counts.entity_scores(entities) if with_entities else counts.class_scores(table)
        kept = {name: score for name, score in scores.items() if name not in ("accuracy", "matthews")}
        return kept, [Artefact("mistakes", "text", "\n".join(shown))] if shown else []


@dataclasses.dataclass(frozen=True)
class AnswerScores(Evaluator):
    """Exact match and F1 over words of the best span, of the nearest of a question's answers, as SQuAD's script has it,
    and MLQA's where words have no spaces between them.

    count: questions that are shown.
    """

    count: int = 8

    needs = Answering

    def run(self, objective, variables, data):
        """(exact_match, answer_f1, a text "answers"). A context is spelt as the record has it."""
        part = self.part(objective)
        total, shown = np.zeros(3), []
        for batch, (first, last) in scored(part, variables, data):
            for row, index in enumerate(batch["index"]):
                record = data.record(index, part.phase)
                fields, recipe = record["fields"], record["settings"]
                answers = labels.answers_in(rows.lookup(fields, recipe["label"]), recipe["label"])
                answers = [text for text, _ in answers]
                ours = spelt(tables.render(recipe["target"], fields), batch["words"][row], first[row], last[row])
                total += counts.answer_counts(ours, answers)
                if len(shown) < self.count:
                    shown.append(f"{text_of(batch, row, data.tokenizer)[:200]}\n  model: {ours!r}  truth: {answers}")
        return counts.answer_scores(total), [Artefact("answers", "text", "\n".join(shown))]


def spelt(context, words, first, last):
    """The text of a context from the word at one place to the word at another; "" where there is none."""
    spans = [match.span() for match in re.finditer(r"\S+", context)]
    if words[first] < 0 or words[last] < 0:
        return ""
    return context[spans[words[first]][0] : spans[words[last]][1]]
