"""A trained run in a notebook: model, parameters, tokenizer, and what they can do.

from launch import load

run = load("/tmp/demo")
run.infill("The <X> sat on <Y> mat")

`load` and everything here imports on first use: importing `launch` takes no time, and brings no jax.
"""

import collections.abc
import dataclasses
from typing import Any

from paradigm.errors import UserError


def load(workdir, step=None):
    """The Run of a checkpoint, on this machine's default device, whatever mesh it was trained on.

    Args:
        workdir: a run directory, the --workdir of launch.train: a path, or gs://BUCKET/RUN.
        step: a step, "best", or None for the newest checkpoint that is whole.

    Raises:
        UserError: no run or no such checkpoint there, or parameters that do not fit the objective of its configuration.
    """
    import jax

    from launch.run import registry
    from launch.run.data import labels_of, tokenizer_of, vocabulary_of_run
    from launch.run.experiment import bound
    from launch.storage import filesystem
    from launch.storage.workdir import open_run
    from paradigm import precision, trees
    from paradigm.step import init_state

    workdir = filesystem.as_path(workdir)
    checkpoints, step = open_run(workdir, step)
    step, arrays, meta = checkpoints.arrays(step, only=("params", "extra"))
    where = checkpoints.directory / str(step)
    experiment = registry.parse_meta(meta, str(where))
    experiment = bound(experiment, vocabulary_of_run(workdir), labels_of(workdir), tokenizer_of(workdir))
    e = experiment
    wanted = jax.eval_shape(lambda: init_state(e.objective, e.optimizer, e.seed, e.ema, freeze=e.freeze))
    place = lambda abstract, found: jax.tree.map(jax.numpy.asarray, trees.merge_strict(abstract, found, str(where)))
    params = precision.full(place(wanted.all_params, arrays.get("params", {})))
    extra = place(wanted.extra, arrays.get("extra", {}))
    return Run(workdir, step, experiment, params, extra)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What `load` found: the experiment, and its state after `step` steps. params and extra are trees of jax arrays.

    speed: {"decoded_tokens_per_second": number} of what was last written by infill, generate, rewrite or caption; empty
    after a call for which a program had to be compiled first.
    """

    workdir: Any
    step: int
    experiment: Any
    params: Any = dataclasses.field(repr=False)
    extra: Any = dataclasses.field(repr=False)
    speed: dict = dataclasses.field(default_factory=dict, repr=False)

    @property
    def objective(self):
        return self.experiment.objective

    @property
    def model(self):
        """The Flax module that the objective trains; run.objective.apply calls it."""
        from paradigm.capabilities import HasModel, ask

        return ask(HasModel, self.objective, "run.model", "use run.objective").objective.model

    @property
    def tokenizer(self):
        """The one that the run was trained with."""
        from launch.run.data import tokenizer_of

        found = tokenizer_of(self.workdir)
        if found is None:
            raise UserError(f"{self.workdir}: its tokenizer/, which belongs to the run, is gone: put it back")
        return found

    def variables(self, which=None):
        """Variables for apply: "online", "ema" or "teacher"; None for what evaluation uses (ema, if kept)."""
        which = which or ("online" if self.experiment.ema is None else "ema")
        try:
            return self.objective.variables(self.params, self.extra, which)
        except KeyError as error:
            raise UserError(f"which={which!r}: {error.args[0]}: leave it out for those of evaluation") from None

    def merged(self):
        """The Run of the base model that computes what this adapted one does, with the weights of evaluation.

        Raises:
            UserError: its adaptation has no such form (soft tokens, bottleneck adapters).
        """
        e, adapt = self.experiment, self.objective.adapt
        if adapt is None:
            return self
        params = adapt.merge(self.variables()["params"])
        extra = {name: x for name, x in self.extra.items() if name != "ema"}
        plain = dataclasses.replace(e, objective=e.objective.adapted(None), adapt=None, ema=None)
        return dataclasses.replace(self, experiment=plain, params=params, extra=extra)

    @property
    def labels(self):
        """The names of the classes or tags that the run was trained with, by number."""
        from launch.run.data import labels_of

        return labels_of(self.workdir)

    def embed(self, inputs, which=None, **how):
        """Vectors of texts or of pictures, float32 [n, D]; of one, [D]: of two towers unit vectors in the space that
        both share, else what the encoder makes of them, which is what probes read. `how` as in t5like.features.embed,
        for texts; pictures as in vision.ask.pictures. Where a run reads both, a str is a text."""
        from paradigm.capabilities import ImageFeatures, PairEmbedding, TextFeatures, ask, parts

        inputs = _listed(inputs)
        for part in parts(self.objective):
            one, variables = part.objective, part.variables(self.variables(which))
            if isinstance(one, PairEmbedding):
                from multimodal.ask import embed

                return embed(one, variables, one.tokenizer or self.tokenizer, inputs, **how)
            if isinstance(one, ImageFeatures):
                from vision.ask import embed

                return embed(one, variables, inputs, **how)
            if isinstance(one, TextFeatures):
                from t5like.features import embed

                return embed(one, variables, self.tokenizer, inputs, **how)
        return ask(TextFeatures, self.objective, "embed", "load a run with an encoder")

    def classify(self, inputs, which=None, classes=None, **how):
        """What each text or picture is taken for: a Classified with the label and the probabilities. A pair of texts is
        a tuple; a picture is uint8 [h, w, C], one of Pillow's, or the path of its file. As t5like.tasks.ask.classify
        and vision.ask.classify.

        classes: names to choose among, for a run with two towers, which has none of its own (zero-shot); `how` then as
        in multimodal.ask.classify."""
        from paradigm.capabilities import ClassifyingPictures, ImageFeatures, PairEmbedding, ask, parts

        inputs = _listed(inputs)
        if classes is not None:
            from multimodal.ask import classify

            part = ask(PairEmbedding, self.objective, "classify(classes=...)", "leave classes out")
            tokenizer, variables = part.objective.tokenizer or self.tokenizer, part.variables(self.variables(which))
            return classify(part.objective, variables, tokenizer, inputs, classes, **how)
        for part in parts(self.objective):
            if isinstance(part.objective, PairEmbedding):
                raise UserError("classify: two towers have no classes of their own: give their names, classes=[...]")
            if isinstance(part.objective, ClassifyingPictures):
                from vision.ask import classify

                variables = part.variables(self.variables(which))
                return self._timed(classify, part.objective, variables, self.labels, inputs, **how)
        if any(isinstance(part.objective, ImageFeatures) for part in parts(self.objective)):
            return ask(ClassifyingPictures, self.objective, "classify", "load a run that was trained for it")
        return self._asked("classify", "Classifying", inputs, which, **how)

    def segment(self, images, which=None):
        """The class of each pixel of pictures, int32 [n, H, W]; of one, [H, W]. As vision.ask.segment."""
        from paradigm.capabilities import Segmenting, ask
        from vision.ask import segment

        part = ask(Segmenting, self.objective, "segment", "load a run that was trained for it")
        return segment(part.objective, part.variables(self.variables(which)), _listed(images))

    def tag(self, words, which=None):
        """[(word, its tag)] of a list of words, or of a text. As t5like.tasks.ask.tag."""
        return self._asked("tag", "Tagging", words, which)

    def answer(self, question, context, which=None):
        """The answer to a question in a context, as it is spelt there. As t5like.tasks.ask.answer."""
        return self._asked("answer", "Answering", question, context, which)

    def rewrite(self, texts, which=None, **how):
        """What is written for a text, or for each of a list. `how` as in t5like.tasks.ask.rewrite."""
        return self._asked("rewrite", "Rewriting", _listed(texts), which, **how)

    def _asked(self, name, capability, *inputs, **how):
        """A function of t5like.tasks.ask, given what it is for."""
        from paradigm import capabilities
        from t5like.tasks import ask

        which, inputs = inputs[-1], inputs[:-1]
        instead = "load a run that was trained for it"
        part = capabilities.ask(getattr(capabilities, capability), self.objective, name, instead)
        known = part.objective, part.variables(self.variables(which)), self.tokenizer, self.labels
        return self._timed(getattr(ask, name), *known, *inputs, **how)

    def infill(self, text, which=None, **how):
        """The text with its blanks <X>, <Y> ... filled. `how` as in t5like.decode.infill."""
        from paradigm.capabilities import Infilling, ask
        from t5like import decode

        part = ask(Infilling, self.objective, "infill", self._instead())
        variables = part.variables(self.variables(which))
        return self._timed(decode.infill, part.objective, variables, self.tokenizer, text, **how)

    def fill_mask(self, text, which=None, **how):
        """What may stand at each <mask> of the text. `how` as in t5like.fill_mask."""
        from paradigm.capabilities import FillingMasks, ask
        from t5like.fill_mask import fill_mask

        part = ask(FillingMasks, self.objective, "fill_mask", self._instead())
        return fill_mask(part.objective, part.variables(self.variables(which)), self.tokenizer, text, **how)

    def generate(self, prompt, which=None, **how):
        """The prompt continued. `how` as in t5like.decode.generate; prefix mode is as the run was trained.

        Of a run that writes a text for a text, that text: `rewrite`."""
        from paradigm.capabilities import Generating, Rewriting, ask, parts
        from t5like import decode

        if any(isinstance(part.objective, Rewriting) for part in parts(self.objective)):
            return self.rewrite(prompt, which, **how)

        part = ask(Generating, self.objective, "generate", self._instead())
        how.setdefault("prefix", part.objective.prefix)
        variables = part.variables(self.variables(which))
        return self._timed(decode.generate, part.objective, variables, self.tokenizer, prompt, **how)

    def caption(self, images, prompt="", which=None, **how):
        """A caption of each picture, or of one, given as to `classify`, which begins with the prompt. `how` as in
        multimodal.captions."""
        from multimodal.captions import caption
        from paradigm.capabilities import Captioning, ask

        part = ask(Captioning, self.objective, "caption", "use an objective that writes captions")
        variables = part.variables(self.variables(which))
        tokenizer = part.objective.tokenizer or self.tokenizer
        return self._timed(caption, part.objective, variables, tokenizer, _listed(images), prompt, **how)

    def _timed(self, function, *inputs, **how):
        """What a function gives; `speed` is then its own."""
        from paradigm.progress import timed

        with timed() as rates:
            found = function(*inputs, **how)
        self.speed.clear()
        self.speed.update(rates.per_second())
        return found

    def _instead(self):
        """What a person who asked for the wrong one of infill and generate may do."""
        from paradigm.capabilities import Generating, Infilling, Rewriting, parts
        from t5like.decode import instead

        able = lambda capability: any(isinstance(part.objective, capability) for part in parts(self.objective))
        return "use rewrite" if able(Rewriting) else instead(able(Infilling), able(Generating))


def _listed(inputs):
    """What a method is asked about: a column of a table, a generator or another array than numpy's as a list or as
    numpy's; one text, one picture and a list as they are."""
    import numpy as np

    if isinstance(inputs, (str, list, tuple)) or not isinstance(inputs, collections.abc.Iterable):
        return inputs
    found = np.asarray(inputs) if hasattr(inputs, "__array__") else list(inputs)
    return found if isinstance(found, list) or found.dtype.kind not in "OTU" else found.tolist()
