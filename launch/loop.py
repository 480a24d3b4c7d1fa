"""THE loop. There is one: it trains every objective, on one core or on a pod, from scratch or from where a run stopped.

`train` reads from top to bottom as a run goes: claim the directory, compile while the data start up, find the first
state, take steps. What is due after a step (rows, evaluation, checkpoint) is decided at the head of the loop, which
turns once more than there are steps, so that the last step is nothing special.

Rows of metrics.jsonl do not depend on where a run was interrupted. A row merges the sums of the steps since the row
before; a checkpoint carries the sums of the row that is not full yet, and what was logged and evaluated up to then.
"""

import collections
import contextlib
import dataclasses
import errno
import functools
import os
import signal
import sys
import threading
import time

import jax

from launch import store
from launch import workdir as run_directory
from launch.checkpoint import Checkpoints
from launch.data import Data
from launch.evaluate import Evaluation
from launch.experiment import flatten, validate, warnings
from launch.input import batches
from launch.mesh import make_mesh, slice_count
from launch.peers import Peers
from launch.program import Background, Program
from launch.staging import Staging
from launch.watchdog import Watchdog
from launch.writers import make_writers
from paradigm import trees
from paradigm.errors import UserError
from paradigm.metrics import mean, merge, peak_flops

UNHURRIED = 10  # so many times the bound of a step, for an evaluation or a save
BAD_STEPS = 10  # so many non-finite steps in a row end a run: by then it is not the data


@dataclasses.dataclass(frozen=True)
class Finished:
    """How a call of `train` ended.

    step: steps behind the state. interrupted: a signal ended it before total_steps. state: the TrainState; None where
    the run had gone further than total_steps and nothing was done. metrics: of the last evaluation.
    """

    step: int
    interrupted: bool
    state: object
    metrics: dict


def train(experiment, workdir, *, config=None, init_from=None, init_partly_from=None, profile=None, step_timeout=0):
    """Trains an experiment in a directory, or goes on with the run that is there, to total_steps.

    SIGTERM or Ctrl-C saves and returns (the process then exits with 0; the same command goes on); a second Ctrl-C ends
    the process at once. In a run of several processes jax's own preemption service brings SIGTERM to all of them.

    Args:
        experiment: an Experiment.
        workdir: the run directory, a path or gs://BUCKET/RUN.
        config: the experiment as gin text, kept as config.gin and in every checkpoint.
        init_from: a run directory, or one checkpoint in it, whose params a NEW run starts with. Order: this run's own
            checkpoint, then init_from, then scratch.
        init_partly_from: the same, but parameters are taken where name and shape agree (an encoder under another head).
        profile: (first, last): steps first .. last - 1 are traced into workdir/profile.
        step_timeout: seconds until a step that hangs ends the process (launch.watchdog); 0 waits for ever.

    Returns:
        Finished.

    Raises:
        UserError: settings that cannot work, a directory of another experiment, a checkpoint that does not fit, a full
            disk, or BAD_STEPS non-finite steps in a row; of several processes, that they differ or share no directory.
    """
    config = config or "".join(f"{key} = {value}\n" for key, value in flatten(experiment).items())
    try:
        with contextlib.ExitStack() as closing:
            peers = closing.enter_context(Peers(config, run_directory.versions()))
            watch = closing.enter_context(Watchdog(step_timeout, peers.tell))
            with peers.telling():
                validate(experiment, jax.device_count())
                files = closing.enter_context(Staging(store.place(workdir)))
                run_directory.check(files.workdir, config)
                step = Checkpoints(files.workdir / "checkpoints").beyond(experiment.total_steps)
                if step is not None:
                    if jax.process_index() == 0:
                        print(f"step {step} of {experiment.total_steps}: nothing to do in {workdir}", flush=True)
                    return Finished(step, False, None, {})
                run_directory.claim(files, config)
                peers.share(files.workdir)
                return _train(experiment, files, config, (init_from, init_partly_from), profile, watch, closing)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{workdir}: {error.strerror}; make room and give the same command again") from error


def _train(experiment, files, config, sources, profile, watch, closing):
    workdir = files.workdir  # where the run and its checkpoints are; its other files are written in files.local
    objective, total = experiment.objective, experiment.total_steps
    mesh = make_mesh(experiment.mesh)
    closing.enter_context(jax.set_mesh(mesh))
    _introduce(mesh)
    if jax.process_index() == 0:
        for line in warnings(experiment):
            print(f"warning: {line}", file=sys.stderr, flush=True)

    # Shapes first. The steps and the first state are made of them in threads, while the data are prepared here.
    program = Program(experiment, mesh)
    best = experiment.best_metric, experiment.best_mode
    checkpoints = closing.enter_context(Checkpoints(workdir / "checkpoints", experiment.keep, *best, files.push))
    first = objective.phase((checkpoints.steps() or [0])[-1])
    executables = Background(program.compile, sorted(program.batch, key=lambda phase: phase != first))
    closing.callback(executables.close)
    make_state, meta, source = _beginning(program, checkpoints, *sources)
    states = Background(lambda make: make(), [make_state])
    closing.callback(states.close)
    data = Data(experiment, files.local / "data")

    if data.tokenizer is not None and jax.process_index() == 0:
        data.tokenizer.save(files.local / "tokenizer")  # a run can be used where its data are not

    state = states[make_state]
    step = int(state.step)
    if meta["data"] not in (None, data.fingerprint):
        raise UserError(
            f"{files.local / 'data'} is not what step {step} was trained on (fingerprint {data.fingerprint}, wanted "
            f"{meta['data']}): put the data back, or take another directory"
        )
    feed = closing.enter_context(batches(data.train, step, program.rows(), experiment.workers))
    evaluation = Evaluation(program, data)
    unit = objective.items(program.batch[first])[0]
    progress = meta["progress"]
    writers = make_writers(
        files.local, logged=progress["logged"], evaluated=progress["evaluated"], step=step, total_steps=total, unit=unit
    )
    closing.callback(writers.close)
    count = sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
    writers.say(f"{source} · {count:,} parameters · {workdir}")
    meter = Meter(experiment, program, writers, progress, step, int(state.bad_steps))
    evaluated, metrics, last_save = progress["evaluated"], {}, ()
    executables[first]
    stop = closing.enter_context(Stop())
    trace = closing.enter_context(Profile(profile, files.local / "profile"))

    while True:
        watch.at(f"step {step + 1}")
        stopping, last = stop.asked(step), step >= total
        fresh = {}
        if last:
            meter.finish()
        if step > evaluated and (last or step % experiment.eval_every == 0) and not stopping:
            meter.drain()
            watch.at(f"the evaluation after step {step}", UNHURRIED)
            start = time.perf_counter()
            found = evaluation.run(state, stop.hurried)
            if found is None:  # a signal came; the evaluation is due again when the run goes on
                continue
            evaluated, metrics = step, found[0]
            writers.valid(step, *found, {"seconds": time.perf_counter() - start})
            fresh = metrics
            files.offer()
            meter.restart_clock()
        if step > 0 and (last or stopping or step % experiment.save_every == 0):
            meter.drain()
            watch.at(f"saving step {step}", UNHURRIED)
            saved = {
                "next_index": step * experiment.batch_size,
                "objective": type(objective).__name__,
                "phase": objective.phase(step),
                "config": config,
                "data": data.fingerprint,
                "versions": run_directory.versions(),
                "progress": {"evaluated": evaluated, **meter.progress},
            }
            last_save = step, state, saved, fresh
            checkpoints.save(*last_save)
            meter.restart_clock()
        if last or stopping:
            break

        watch.at(f"step {step + 1}")
        trace.at(step, meter)
        phase = objective.phase(step)
        state, new = executables[phase](state, program.put(next(feed), phase))
        step += 1
        meter.push(step, phase, new)
        writers.advance(step)

    watch.at(f"saving step {step}", UNHURRIED)
    checkpoints.finish(*last_save)
    writers.say(
        f"done: {total} steps in {workdir}"
        if last
        else f"stopped at step {step} of {total}, saved in {checkpoints.directory}; the same command goes on from there"
    )
    return Finished(step, not last, state, metrics)


def _introduce(mesh):
    """The first line of a log, from every process: who and where."""
    axes = " ".join(f"{name}:{size}" for name, size in mesh.shape.items())
    packages = run_directory.versions()
    slices = slice_count(jax.devices())
    print(
        f"process {jax.process_index()} of {jax.process_count()} · "
        f"{jax.local_device_count()} of {jax.device_count()} devices ({jax.devices()[0].device_kind})"
        f"{f' in {slices} slices' if slices > 1 else ''} · mesh {axes} · "
        + ", ".join(f"{name} {packages[name]}" for name in ("python", "jax", "flax", "optax")),
        flush=True,
    )


def _beginning(program, checkpoints, init_from=None, init_partly_from=None):
    """(function that makes the first state, meta, what it is): this run's newest checkpoint > init_from > scratch."""
    fresh = {"data": None, "progress": {"logged": 0, "evaluated": 0, "window": {}}}
    flag = f"--init_from={init_from}" if init_from else f"--init_partly_from={init_partly_from}"
    restored = checkpoints.restore(program.state)
    if restored is not None:
        state, meta = restored
        also = f" ({flag} is for new runs)" if init_from or init_partly_from else ""
        return lambda: state, meta, f"resumed from step {int(state.step)}{also}"
    objective = program.experiment.objective
    if init_from is None and init_partly_from is None:
        if objective.locked:
            raise UserError(
                f"{', '.join(objective.locked)} is locked, and without --init_partly_from=DIR it would stay as it was "
                "drawn: give the run that it comes from"
            )
        return program.init, fresh, "started from scratch"
    path, step = store.place(init_from or init_partly_from), None
    if path.name.isdecimal() and path.parent.name == "checkpoints":
        path, step = path.parent.parent, int(path.name)
    found = Checkpoints(path / "checkpoints").arrays(step, only=("params", "extra"))
    if found is None:
        raise UserError(f"{flag}: no checkpoint there; give a run directory or its checkpoints/STEP")
    step, arrays, _ = found
    where, matched = f"{flag} (step {step})", "the parameters"
    if init_from:
        given = dict(trees.named_leaves(trees.merge_strict(program.state.params, arrays["params"], where)))
    else:
        merged, report = trees.merge_partial(program.state.params, objective.adopt(arrays["params"]), where)
        given = {name: x for name, x in trees.named_leaves(merged) if name in report.matched}
        locked = tuple(f"{part}/" for part in objective.locked)
        if lost := [name for name in report.missing if name.startswith(locked)]:
            raise UserError(
                f"{where} lacks {lost[0]} and {len(lost) - 1} more of what is locked, or has them of other shapes: "
                "build the locked tower with the settings of that run"
            )
        matched = f"matching parameters ({report})"
    # Running statistics belong to the parameters that were trained with them.
    wanted = dict(trees.named_leaves(program.state.extra.get("batch_stats", {})))
    have = dict(trees.named_leaves(arrays.get("extra", {}).get("batch_stats", {})))
    stats = {name: x for name, x in have.items() if name in wanted and wanted[name].shape == x.shape}
    return functools.partial(program.init, given, stats), fresh, f"started from {matched} of {path} at step {step}"


class Meter:
    """What the host learns of the steps. It reads their metrics one step late, so that the device never waits for it,
    and never lets more than two steps be in flight; merges them into rows; counts bad steps; takes the time.

    Several virtual devices of one CPU share a pool of threads, in which two steps in flight can wait for each other for
    ever: there each step is waited for.

    progress: logged, the step of the last full row, and window, {name: [sum, weight]} of the steps since.
    """

    def __init__(self, experiment, program, writers, progress, step, bad_in_a_row):
        self._experiment, self._writers = experiment, writers
        self._logged = progress["logged"]
        self._window = progress["window"]
        self._bad_in_a_row = bad_in_a_row
        self._late = 0 if jax.default_backend() == "cpu" and jax.local_device_count() > 1 else 1
        self._pending = collections.deque()
        self._flops = {phase: experiment.objective.flops(spec) for phase, spec in program.batch.items()}
        self._items = {phase: experiment.objective.items(spec) for phase, spec in program.batch.items()}
        self._peak = None
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
        if self._peak is None:  # a CPU's is measured: while nothing else runs, and not before the first step
            self.drain()
            self._peak = peak_flops() * jax.device_count()
            self.restart_clock()

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
        if self._peak is not None:  # the first step, which warms up, says nothing of speed
            now = time.perf_counter()
            self._steps += 1
            self._seconds, self._clock = self._seconds + now - self._clock, now
            self._flops_done += self._flops[phase]
            self._items_done += self._items[phase][1]
        bad, _ = metrics.pop("bad_step")
        self._bad_in_a_row = self._bad_in_a_row + 1 if bad else 0
        self._window = merge(self._window, {} if bad else metrics, {"bad_steps": (bad, 0)})
        if self._bad_in_a_row >= BAD_STEPS:
            size = self._experiment.batch_size
            raise UserError(
                f"loss or gradient was not finite in {BAD_STEPS} steps in a row, last in batch {step - 1} (examples "
                f"{(step - 1) * size} to {step * size - 1}): lower the learning rate, warm up longer or look at "
                "those data; the newest checkpoint is as it was"
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
            unit = next(iter(self._items.values()))[0]
            speed["seconds_per_step"] = self._seconds / self._steps
            speed[f"{unit}_per_second"] = self._items_done / self._seconds
            if self._peak:  # listed
                speed["mfu"] = self._flops_done / self._seconds / self._peak
        self._writers.train(step, dict(sorted(means.items())), speed)

    def _forget_speed(self):
        self._steps, self._seconds, self._flops_done, self._items_done = 0, 0.0, 0.0, 0.0


class Stop:
    """SIGTERM or Ctrl-C, turned into a question that the loop asks once a step. The second Ctrl-C is not caught."""

    def __init__(self):
        self._signal, self._before = None, {}

    def __enter__(self):
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._catch) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number, _):
        self._signal = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        text = f"\n{signal.Signals(number).name}: saving after this step; Ctrl-C ends the process at once\n"
        os.write(2, text.encode())  # the signal may have come in the middle of a print

    def asked(self, step):
        """Whether to save and leave after `step` steps; all processes get the same answer."""
        if jax.process_count() == 1:
            return self._signal is not None
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def hurried(self):
        """Whether a signal has come to this process, which is alone: then an evaluation is not worth finishing."""
        return self._signal is not None


class Profile:
    """Traces steps first .. last - 1 of a run for TensorBoard's profiler."""

    def __init__(self, steps, directory):
        self._first, self._last = steps or (0, 0)
        self._directory, self._running = directory, False

    def at(self, step, meter):
        """Before each step: starts or stops when it is time, with no step in flight."""
        if not self._running and self._first <= step < self._last:  # a run may go on in the midst of them
            meter.drain()
            jax.profiler.start_trace(self._directory)
            self._running = True
        if self._running and step >= self._last:
            meter.drain()
            self.__exit__()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
