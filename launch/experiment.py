"""One training run as a value: what gin builds, what the loop reads, what a notebook may write by hand."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paradigm.objective import Objective
    from paradigm.optim import Optimizer


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides a run, apart from the machine it runs on.

    `batch_size` counts examples of the whole mesh per step, `microbatches` cuts it into that many equal parts whose
    gradients are added exactly. Periods are in steps; evaluation and saving also happen at the last step.
    """

    objective: Objective
    data: Any  # a recipe with .build(...), such as t5like.data.TextData
    optimizer: Optimizer
    total_steps: int
    batch_size: int
    microbatches: int = 1
    seed: int = 0
    clip: float | None = 1.0  # largest global gradient norm; None never clips
    ema: float | None = None  # decay of the averaged weights; None keeps no average
    evaluators: tuple[Any, ...] = ()
    log_every: int = 10
    eval_every: int = 1000
    eval_batches: int = 20  # at most so many validation batches an evaluation
    save_every: int = 1000
    keep: int = 3  # newest checkpoints that stay, beside the best one
    best_metric: str = "valid/loss"
    best_mode: str = "min"  # whether the best is the 'min' or the 'max'
    workers: int = 0  # processes that prepare batches; 0: a thread of this one
    mesh: str = "data:1,fsdp:-1,tensor:1"
