"""The metrics of the train steps as the host reads them: so late that the device never waits, merged into rows."""

import collections
import contextlib
import functools
import time

import jax

from paradigm.errors import UserError
from paradigm.metrics import mean, merge, peak_flops

MEASURED = 3  # so often at most is a peak measured
BAD_STEPS = 10  # so many non-finite steps in a row end a run: by then it is not the data


class StepMetrics:
    """What the host learns of the steps. It reads their metrics one step late, so that the device never waits for it,
    and never lets more than two steps be in flight; merges them into rows; counts bad steps; takes the time.

    Several virtual devices of one CPU share a pool of threads, in which two steps in flight can wait for each other for
    ever: there each step is waited for.

    progress: logged, the step of the last full row, and window, {name: [sum, weight]} of the steps since.
    saved: gives the newest checkpoint's step, or None. idle: whether nothing else runs in this process, a compiler say.
    memory: gives the bytes that a step of a phase needs at most, 0 where that is not known.
    """

    def __init__(
        self,
        experiment,
        program,
        writers,
        progress,
        step,
        bad_in_a_row,
        saved,
        idle=lambda: True,
        memory=lambda phase: 0,
    ):
        self._experiment, self._writers = experiment, writers
        self._logged = progress["logged"]
        self._window = progress["window"]
        self._bad_in_a_row = bad_in_a_row
        self._late = 0 if jax.default_backend() == "cpu" and jax.local_device_count() > 1 else 1
        self._pending = collections.deque()
        frozen = program.state.frozen_modules
        self._flops = {phase: experiment.objective.flops(spec, frozen) for phase, spec in program.batch.items()}
        self._throughput = {phase: experiment.objective.throughput(spec) for phase, spec in program.batch.items()}
        self._saved, self._memory, self._idle, self._told = saved, functools.cache(memory), idle, False
        self._peak, self._warm, self._again, self._measured = None, False, False, 0
        self._read_until = step
        self._start = self._clock = time.perf_counter()
        self._forget_speed()

    @property
    def progress(self):
        return {"logged": self._logged, "window": self._window}

    def push(self, step, phase, metrics):
        """Takes the metrics of the step just started, and reads those of the one before."""
        self._pending.append((step, phase, metrics))
        while len(self._pending) > self._late:
            self._read()
        due = self._peak is None or self._again
        if not self._warm or (due and self._idle()):
            self.drain()
            self._warm = True
            if due and self._idle():  # a CPU's is measured: while nothing else runs, and not before the first step
                self._peak = peak_flops(again=self._again) * jax.device_count()
                self._again, self._measured = False, self._measured + 1
            self.restart_clock()

    @contextlib.contextmanager
    def waiting(self):
        """Around what waits for the next batch."""
        begin = time.perf_counter()
        yield
        if self._warm:
            self._waited += time.perf_counter() - begin

    def drain(self):
        """Waits for every step that was started."""
        while self._pending:
            self._read()

    def restart_clock(self):
        """Leaves out of the speed whatever happened since the last step was read."""
        self._clock = time.perf_counter()

    def finish(self):
        """The row of the last steps of a run, where they do not fill one."""
        self.drain()
        if self._read_until >= self._experiment.total_steps and self._window:
            self._row(self._read_until)

    def _read(self):
        step, phase, metrics = self._pending.popleft()
        metrics = dict(jax.device_get(metrics))
        self._read_until = step
        if self._warm:  # the first step, which warms up, says nothing of speed
            now = time.perf_counter()
            self._steps += 1
            self._seconds, self._clock = self._seconds + now - self._clock, now
            self._flops_done += self._flops[phase]
            self._items_done += self._throughput[phase][1]
            self._peak_memory = max(self._peak_memory, self._memory(phase))
        bad, _ = metrics.pop("bad_step")
        self._bad_in_a_row = self._bad_in_a_row + 1 if bad else 0
        self._window = merge(self._window, {} if bad else metrics, {"bad_steps": (bad, 0)})
        if self._bad_in_a_row >= BAD_STEPS:
            size, saved = self._experiment.batch_size, self._saved()
            left = (
                "no checkpoint was saved before" if saved is None else f"the newest checkpoint, {saved}, is as it was"
            )
            raise UserError(
                f"loss or gradient was not finite in {BAD_STEPS} steps in a row, last in batch {step - 1} (examples "
                f"{(step - 1) * size} to {step * size - 1}): lower the learning rate, warm up longer or look at "
                f"those data; {left}"
            )
        if step % self._experiment.log_every == 0:
            self._row(step)
            self._logged, self._window = step, {}
            self._forget_speed()

    def _row(self, step):
        means = {name: mean(*pair) for name, pair in self._window.items()}
        means["bad_steps"] = int(self._window["bad_steps"][0])
        speed = {"elapsed": time.perf_counter() - self._start}
        if self._steps:
            unit = next(iter(self._throughput.values()))[0]
            speed["seconds_per_step"] = self._seconds / self._steps
            speed["input_wait"] = self._waited / self._steps
            speed[f"{unit}_per_second"] = self._items_done / self._seconds
            if self._peak_memory:
                speed["peak_memory"] = self._peak_memory
            if self._peak:  # listed
                speed["mfu"] = self._flops_done / self._seconds / self._peak
                self._doubt(speed["mfu"])
        self._writers.train(step, dict(sorted(means.items())), speed)

    def _doubt(self, mfu):
        """More than the peak is impossible: it was measured while the machine was busy, and is measured again."""
        if mfu > 1 and self._measured < MEASURED:
            self._again = True
        elif mfu > 1 and not self._told:
            self._told = True
            kind, share = jax.devices()[0].device_kind, f"MFU {100 * mfu:.0f} %"
            self._writers.say(f"warning: {share} is impossible: the peak of '{kind}' is not known well enough here")

    def _forget_speed(self):
        self._steps, self._seconds, self._flops_done, self._items_done, self._peak_memory = 0, 0.0, 0.0, 0.0, 0
        self._waited = 0.0
