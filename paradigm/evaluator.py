"""The contract of an evaluator: what is measured or shown of an objective during and after training."""

from paradigm.capabilities import ask
from paradigm.errors import UserError


class Evaluator:
    """Base of all evaluators: a frozen dataclass of settings, named in Experiment.evaluators.

    needs: the capability that an objective must have for it (see paradigm.capabilities), or None.
    counts: names of the settings of which 1 is the least (of a tuple each); None sets no bound.

    `data`, of both functions, has `train` (a Dataset), `batches(phase)` of the validation set, `examples(count, phase)`
    spread over it, `records(split)`, `record(index, phase)` of a row of a batch, `held_out(count, phase)`
    records, `tokenizer` (None for data without text) and `labels` (names of classes, or ()), as
    launch.run.data.Data.
    """

    needs = None
    counts = ()

    def __post_init__(self):
        for name in self.counts:
            value = getattr(self, name)
            least = min(value, default=0) if isinstance(value, tuple) else value
            if least is not None and least < 1:
                raise UserError(f"{type(self).__name__}.{name}={value}: 1 is the least")

    def check(self, objective, data):
        """Raises UserError for what can be told before the first step: it is called then, and must be quick."""
        del data
        if self.needs is not None:
            self.part(objective)

    def run(self, objective, variables, data):
        """({name: number}, [Artefact]) of an objective in these variables, those of the whole objective."""
        raise NotImplementedError

    def part(self, objective):
        """The Part of the objective that this evaluator is about. Raises UserError where there is none."""
        return ask(self.needs, objective, type(self).__name__)
