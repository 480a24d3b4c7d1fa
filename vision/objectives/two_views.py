"""What the objectives on two views of a picture share, beside what all objectives on images do."""

import dataclasses

from paradigm.errors import UserError
from vision.objectives.base import ImageObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoViews(ImageObjective):
    """Base of the objectives on two views. Evaluation draws them too, by index: two equal views would be no task.

    Raises UserError when `augment` gives another number of them.
    """

    def __post_init__(self):
        sizes = [len(group) for group, count in self.groups for _ in range(count)]
        if sizes != [1, 1]:
            raise UserError(
                f"{type(self).__name__} compares two views of a picture and its augment gives {sum(sizes)}: give one "
                "Augment for both, or a pair"
            )


def prefixed(name, named):
    return {f"{name}/{key}": value for key, value in named.items()}
