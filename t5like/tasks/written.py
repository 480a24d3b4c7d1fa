"""What is written by a text-to-text model, beside what should have been: BLEU, chrF, ROUGE and exact matches.

The definitions are the libraries' own: sacrebleu's corpus scores with its default signatures, rouge-score with Porter's
stemmer and the best of several references. A score that needs a library is refused before the first step where it is
missing; so are ROUGE, whose words are runs of a-z and 0-9, and BLEU, whose words stand between spaces, for texts that
they cannot read: even a text that is right would score 0.
"""

import dataclasses
import importlib
import re

from paradigm.capabilities import Rewriting
from paradigm.errors import UserError, choose
from paradigm.evaluator import Evaluator
from paradigm.metrics import Artefact
from t5like import rows, tables
from t5like.decode import chosen_by
from t5like.sentences import UNSPACED

_ROUGE = ("rouge_score.rouge_scorer", "RougeScorer")
LIBRARIES = {"exact": None, "bleu": ("sacrebleu", "corpus_bleu"), "chrf": ("sacrebleu", "corpus_chrf"),
             "rouge1": _ROUGE, "rouge2": _ROUGE, "rougeL": _ROUGE}  # score: (module, what of it)  # fmt: skip
TOGETHER = 32  # texts that are written at once
UNREAD = 1 / 3  # of the references' letters: a score that reads fewer of the others is refused
_NOT_READ = {"rouge": (re.compile("[^a-z]"), "reads the letters a-z alone"),
             "bleu": (re.compile(UNSPACED), "takes what stands between spaces for a word")}  # fmt: skip


def text_scores(found, references, scores):
    """{name: value} of texts, each with a list of references: exact 0 to 1; bleu, chrf 0 to 100; rouge F1, 0 to 1."""
    values = {}
    if "exact" in scores:
        same = [text.strip() in [r.strip() for r in refs] for text, refs in zip(found, references)]
        values["exact_match"] = sum(same) / len(same)
    if {"bleu", "chrf"} & set(scores):
        most = max(map(len, references))
        columns = [[refs[k] if k < len(refs) else None for refs in references] for k in range(most)]
        for name in ("bleu", "chrf"):
            if name in scores:
                values[name] = _of_library(name)(found, columns).score
    if rouge := [name for name in scores if name.startswith("rouge")]:
        scorer = _of_library(rouge[0])(rouge, use_stemmer=True)
        each = [scorer.score_multi(refs, text) for text, refs in zip(found, references)]
        values |= {name: sum(one[name].fmeasure for one in each) / len(each) for name in rouge}
    return values


def _of_library(score):
    """What computes a score. Raises UserError where its library is not there, or not whole."""
    module, attribute = LIBRARIES[score]
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"TextScores: {score} needs the package {package.replace('_', '-')}: pip install "
            f"'paradigm-pretraining[tasks]', or take it from TextScores.scores ({error})"
        ) from None


@dataclasses.dataclass(frozen=True)
class TextScores(Evaluator):
    """Scores of what the model writes for validation inputs: the most probable token after the other, or as is set.

    scores: of exact, bleu, chrf, rouge1, rouge2, rougeL. count: texts that are written, spread evenly over the
    validation records. references: the field that holds one or several true texts; "": the target by its template.
    shown: texts to look at. temperature, top_k, top_p, seed: see t5like.decode.Sampling. beams, length_penalty: above 1
    beam, the best text that beam search finds (t5like/decode/beam.py).

    Raises UserError for an unknown score, for one whose library is not there, and for draws and beams at once.
    """

    scores: tuple[str, ...] = ("exact",)
    count: int = 64
    references: str = ""
    shown: int = 8
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    beams: int = 1
    length_penalty: float = 1.0
    seed: int = 0

    needs = Rewriting
    counts = ("count",)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "scores", tuple(self.scores))  # gin gives a list
        for name in self.scores:
            choose("TextScores.scores", name, LIBRARIES)
        self._choice(None)

    def check(self, objective, data):
        super().check(objective, data)
        for name in self.scores:
            if LIBRARIES[name]:
                _of_library(name)
        part = self.part(objective)
        texts = [text for record in data.held_out(self.count, part.phase) for text in self._references(record)]
        letters = [letter for text in texts for letter in text.lower() if letter.isalpha()]
        for name in self.scores:
            strange, how = _NOT_READ.get(name.rstrip("12L"), (None, ""))
            share = strange and sum(map(bool, map(strange.match, letters))) / max(len(letters), 1)
            if share and share > UNREAD:
                raise UserError(
                    f"TextScores: {name} {how}, and {100 * share:.0f} % of the letters of the true texts are others: "
                    "set TextScores.scores to 'chrf' or 'exact'"
                )

    def run(self, objective, variables, data):
        """({score: value}, [Artefact "written"])."""
        part, tokenizer = self.part(objective), data.tokenizer
        own, records = part.variables(variables), data.held_out(self.count, part.phase)
        choice, found = self._choice(tokenizer.vocab_size), []
        for start in range(0, len(records), TOGETHER):
            some = [record["inputs"] for record in records[start : start + TOGETHER]]
            padded = some + [some[-1]] * (TOGETHER - len(some))
            written = part.objective.rewrite(own, padded, choice, self.seed + start)
            found += [tokenizer.decode(ids) for ids in written[: len(some)]]
        references = [self._references(record) for record in records]
        shown = [
            f"{_line(tokenizer.decode(record['inputs']))[:300]}\n  model: {_line(ours)}\n  truth: {_line(refs[0])}"
            for record, ours, refs in zip(records[: self.shown], found, references)
        ]
        return text_scores(found, references, self.scores), [Artefact("written", "text", "\n".join(shown))]

    def _choice(self, vocab_size):
        return chosen_by(vocab_size, self.temperature, self.top_k, self.top_p, self.beams, self.length_penalty)

    def _references(self, record):
        fields = record["fields"]
        try:
            if not self.references:
                return [tables.render(record["settings"]["target"], fields)]
            value = rows.lookup(fields, self.references)
            if value == []:
                raise ValueError("has an empty list there")
            return [tables.text_of(one, self.references) for one in (value if isinstance(value, list) else [value])]
        except ValueError as error:
            raise UserError(f"TextScores.references={self.references!r}: a held-out record {error}") from error


def _line(text):
    return text.replace("\n", "⏎")
