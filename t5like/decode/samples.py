"""Evaluators that show what a model writes for validation examples."""

import dataclasses

import numpy as np

from paradigm.capabilities import Generating, SpanFilling
from paradigm.evaluator import Evaluator
from paradigm.metrics import Artefact
from t5like.decode.blanks import spans_of
from t5like.decode.sampled import Sampling, decode_rows
from t5like.decode.steps import check_room


class Writing(Evaluator):
    """An evaluator that lets a model write, by settings `temperature`, `top_k` and `top_p` as of Sampling."""

    def __post_init__(self):
        super().__post_init__()
        self.sampling()  # which may refuse them

    def sampling(self, vocab_size=None):
        return Sampling(self.temperature, self.top_k, self.top_p, vocab_size)


@dataclasses.dataclass(frozen=True)
class InfillSamples(Writing):
    """Shows validation examples of span corruption: the corrupted text, then each span by the model and in truth.

    count: examples. temperature, top_k, top_p: see Sampling; above a temperature of 0 what is drawn stands beside the
    most probable, which repeats itself. seed: of the draws. </s> is where a document ends.
    """

    count: int = 4
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    needs = SpanFilling
    counts = ("count",)

    def run(self, objective, variables, data):
        """({"infill_exact": the share of the shown spans that are filled as in truth}, [Artefact "infill"])."""
        part = self.part(objective)
        rows, tokenizer = part.examples(data, self.count), data.tokenizer
        inputs = [x[real > 0] for x, real in zip(rows["encoder_inputs"], rows["encoder_segments"])]
        targets = [x[real > 0] for x, real in zip(rows["targets"], rows["segments"])]
        ways = {"model": Sampling(vocab_size=tokenizer.vocab_size)}
        if self.temperature:
            ways[f"at temperature {self.temperature:g}"] = self.sampling(tokenizer.vocab_size)
        fixed = part.objective, part.variables(variables), [[]] * len(inputs), rows["targets"].shape[1]
        found = [decode_rows(*fixed, way, tokenizer.vocabulary, self.seed, inputs) for way in ways.values()]
        text = lambda ids: _with_ends(tokenizer, ids)
        whole = lambda ids: ids[:-1] if len(ids) and ids[-1] == tokenizer.vocabulary.end else ids  # without its own end
        shown, right, total = [], 0, 0
        for n, (source, target, *ours) in enumerate(zip(inputs, targets, *found), 1):
            truth, *ours = (spans_of(x, tokenizer.vocabulary) for x in (whole(target), *ours))
            shown.append(f"example {n}: {text(whole(source))}")
            for i, span in truth.items():
                wanted, *filled = (text(x) for x in (span, *(spans.get(i, []) for spans in ours)))
                said = "".join(f"  {name}: {x!r}" for name, x in zip((*ways, "truth"), (*filled, wanted)))
                shown.append(f"  {tokenizer.decode([i])}{said}")
                right, total = right + (filled[0] == wanted), total + 1
        return {"infill_exact": right / max(total, 1)}, [Artefact("infill", "text", "\n".join(shown))]


@dataclasses.dataclass(frozen=True)
class GenerateSamples(Writing):
    """Shows validation windows: how they begin, how the model goes on, and how the text does.

    count: windows. prompt_tokens: how much of each is given, of its first document. The rest as in `generate`.
    """

    count: int = 4
    prompt_tokens: int = 32
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    needs = Generating
    counts = ("count", "max_new_tokens")

    def check(self, objective, data):
        super().check(objective, data)
        part = self.part(objective).objective
        check_room(part, min(self.prompt_tokens, part.raw_length - 1), self.max_new_tokens)

    def run(self, objective, variables, data):
        """({}, [Artefact "generate"])."""
        part = self.part(objective)
        rows, tokenizer = part.examples(data, self.count), data.tokenizer
        windows = [tokens[segments == segments[0]] for tokens, segments in zip(rows["targets"], rows["segments"])]
        prompts = [tokens[: min(self.prompt_tokens, max(len(tokens) - 1, 1))] for tokens in windows]
        sampling = self.sampling(tokenizer.vocab_size)
        found = decode_rows(
            part.objective,
            part.variables(variables),
            prompts,
            self.max_new_tokens,
            sampling,
            tokenizer.vocabulary,
            self.seed,
            prefix=part.objective.prefix,
        )
        shown = []
        for n, (tokens, prompt, ours) in enumerate(zip(windows, prompts, found), 1):
            truth = tokens[len(prompt) : len(prompt) + self.max_new_tokens]
            shown.append(f"example {n}: {_one_line(tokenizer.decode(prompt))}")
            shown += [
                f"  {name}: {_one_line(tokenizer.decode(x))!r}" for name, x in (("model", ours), ("truth", truth))
            ]
        return {}, [Artefact("generate", "text", "\n".join(shown))]


def _with_ends(tokenizer, ids):
    """A text on one line, with </s> where documents end inside it: `decode` leaves that out."""
    ids, end = np.asarray(ids, np.int64), tokenizer.vocabulary.end
    return "</s>".join(_one_line(tokenizer.decode(x[x != end])) for x in np.split(ids, np.flatnonzero(ids == end)))


def _one_line(text):
    return text.replace("\n", "⏎")
