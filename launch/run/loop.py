"""THE loop. There is one: it trains every objective, on one core or on a pod, from scratch or from where a run stopped.

`train` reads from top to bottom as a run goes: lock the directory, compile while the data start up, find the first
state, claim the directory, take steps. What is due after a step (rows, evaluation, checkpoint) is decided at the head
of the loop, which turns once more than there are steps, so that the last step is nothing special.

Rows of metrics.jsonl do not depend on where a run was interrupted. A row merges the sums of the steps since the row
before; a checkpoint carries the sums of the row that is not full yet, and what was logged and evaluated up to then.
"""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax

from launch.run.data import LABELS, Data, build, look, named_sources
from launch.run.distributed import Peers
from launch.run.evaluation import Evaluation
from launch.run.experiment import at_default, bound, completed, flatten, validate, warnings
from launch.run.initial import horizon_changed, initial_state, same_ids, sources
from launch.run.loader import batches, reading_threads
from launch.run.mesh import make_mesh, slice_count
from launch.run.program import Program, step_memory
from launch.run.step_metrics import StepMetrics
from launch.run.watchdog import Watchdog
from launch.run.writers import make_writers
from launch.storage import filesystem
from launch.storage import workdir as run_directory
from launch.storage.checkpoint import Checkpoints
from launch.storage.sync import WorkdirSync
from paradigm.classes import are_same
from paradigm.errors import UserError
from paradigm.names import few
from paradigm.progress import heard_by, timed
from t5like.vocabulary import same

STAND_INS = ("0", "1")  # for the names of classes until the data are there: no axis of a mesh depends on them
UNHURRIED = 10  # so many times the bound of a step, for an evaluation or a save


class AnyTokenizer:
    """Stands for the tokenizer of the data until they are there: no shape depends on the ids that soft tokens
    begin as."""

    def encode(self, text):
        return [0] * bool(text.strip())


@dataclasses.dataclass(frozen=True)
class Finished:
    """How a call of `train` ended.

    step: steps behind the state. interrupted: a signal ended it before total_steps. state: the TrainState; None where
    the run had gone further than total_steps and nothing was done. metrics: of the last evaluation.
    """

    step: int
    interrupted: bool
    state: object = dataclasses.field(repr=False)  # a notebook shows the rest
    metrics: dict


def train(
    experiment,
    workdir,
    *,
    config=None,
    unset=(),
    init_from=None,
    init_partly_from=None,
    profile=None,
    step_timeout=0,
    imports=None,
):
    """Trains an experiment in a directory, or goes on with the run that is there, to total_steps.

    SIGTERM or Ctrl-C saves and returns (the process then exits with 0; the same command goes on); a second Ctrl-C ends
    the process at once. In a run of several processes jax's own preemption service brings SIGTERM to all of them.

    Args:
        experiment: an Experiment.
        workdir: the run directory, a path or gs://BUCKET/RUN.
        config: the experiment as gin text, kept as config.gin and in every checkpoint.
        unset: names in config that nobody has set (registry.unset): a run of older code, which lacked them, goes on.
        init_from: short for the experiment's init = (Init(init_from),): where a NEW run's parameters come from. Order:
            this run's own checkpoint, then init, then scratch.
        init_partly_from: short for Init(init_partly_from, strict=False).
        profile: (first, last): steps first .. last - 1 are traced into workdir/profile.
        imports: {module: files of its source} of code from outside, kept in workdir/imports.
        step_timeout: seconds until a step that hangs ends the process (launch.run.watchdog); 0 waits for ever.

    Returns:
        Finished.

    Raises:
        UserError: settings that cannot work, a directory of another experiment, a checkpoint that does not fit, a full
            disk, or too many non-finite steps in a row; of several processes, that they differ or share no directory.
    """
    if config is None:
        config = "".join(f"{key} = {value}\n" for key, value in flatten(experiment).items())
        unset = at_default(experiment)
    try:
        with contextlib.ExitStack() as closing:
            peers = closing.enter_context(Peers(config, run_directory.versions()))
            watch = closing.enter_context(Watchdog(step_timeout, peers.tell))
            with peers.telling():
                experiment = bound(experiment)
                validate(bound(experiment, classes=STAND_INS, tokenizer=AnyTokenizer()), jax.device_count())
                if profile and profile[0] >= experiment.total_steps:
                    raise UserError(
                        f"--profile={profile[0]}:{profile[1]}: the last step is {experiment.total_steps - 1}"
                    )
                inits = sources(experiment, init_from, init_partly_from)
                closing.enter_context(run_directory.held(filesystem.as_path(workdir)))
                files = closing.enter_context(WorkdirSync(filesystem.as_path(workdir)))
                run_directory.check(files.workdir, config, unset)
                step = Checkpoints(files.workdir / "checkpoints").beyond(experiment.total_steps)
                if step is not None:
                    if jax.process_index() == 0:
                        print(f"step {step} of {experiment.total_steps}: nothing to do in {workdir}", flush=True)
                    return Finished(step, False, None, {})
                look(experiment.data, files.local / "data")
                peers.share(files.workdir)
                prepared = None
                if experiment.objective.lacks_classes or experiment.lacks_words:  # shapes then wait for the data
                    prepared = build(experiment, files.local / "data")
                    experiment = completed(experiment, prepared)
                return _train(experiment, files, prepared, config, inits, profile, imports or {}, watch, closing)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{workdir}: {error.strerror}; make room and give the same command again") from error


def _train(experiment, files, prepared, config, inits, profile, imports, watch, closing):
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
    compiling, making = _background(closing), _background(closing)
    in_turn = sorted(program.batch, key=lambda phase: phase != first)
    executables = {phase: compiling.submit(program.compile, phase) for phase in in_turn}
    make_state, meta, source = initial_state(program, checkpoints, inits)
    made = making.submit(make_state)
    data = Data(experiment, files.local / "data", prepared)

    for where, vocabulary in meta.get("vocabularies", ()):
        same(vocabulary, data.vocabulary, where, f"the data in {files.local / 'data'}")
    for where, tokenizer in meta.get("tokenizers", ()):
        same_ids(tokenizer, data.tokenizer, where, f"the data in {files.local / 'data'}")
    for where, labels in meta.get("labels", ()):
        if not are_same(labels, data.labels) and jax.process_index() == 0:
            told = f"warning: the head in {where} tells apart {few(labels)}, and the data have {few(data.labels)}"
            print(f"{told}: it begins with other classes' weights", file=sys.stderr, flush=True)
    state = made.result()
    step = int(state.step)
    if meta["data"] not in (None, data.fingerprint):
        where = " and ".join(source for _, source in named_sources(experiment.data)) or files.local / "data"
        raise UserError(
            f"{where} is not what step {step} was trained on (fingerprint {data.fingerprint}, wanted {meta['data']}): "
            "put the data back, or take another directory"
        )
    threads = reading_threads(data.train, step, program.rows())
    feed = closing.enter_context(batches(data.train, step, program.rows(), experiment.workers, threads=threads))
    evaluation = Evaluation(program, data)
    count, trained = (sum(x.size for x in jax.tree.leaves(t)) for t in (program.state.all_params, program.state.params))
    parameters = {"all": count, "trained": trained}
    if jax.process_index() == 0:
        part = "" if trained == count else f", {trained:,} of them trained ({100 * trained / count:.3g} %)"
        print(f"{source} · {count:,} parameters{part} · {workdir}", flush=True)
    executables[first].result()  # a loss may refuse its batch as it is compiled
    changed = run_directory.claim(files, config, imports, parameters)  # all is there that the run needs
    if data.tokenizer is not None and jax.process_index() == 0:
        data.tokenizer.save(files.local / "tokenizer")  # a run can be used where its data are not
    if data.labels and jax.process_index() == 0:
        (files.local / LABELS).write_text(json.dumps(data.labels, indent=1) + "\n")
    unit = objective.throughput(program.batch[first])[0]
    progress = meta["progress"]
    ended = min(step, progress["evaluated"]) >= total  # then all rows are there, that of the last steps too
    writers = make_writers(
        files.local,
        logged=total if ended else progress["logged"],
        evaluated=progress["evaluated"],
        step=step,
        total_steps=total,
        unit=unit,
        title=f"{type(objective).__name__} · {workdir.name}",
        config=config,
    )
    closing.callback(writers.close)
    for line in changed:
        writers.say(f"warning: {line}")
    if profile and profile[1] <= step:
        writers.say(f"warning: nothing is traced: --profile={profile[0]}:{profile[1]} lies before step {step}")
    if line := horizon_changed(experiment.optimizer, step, meta):
        writers.say(line)
    step_metrics = StepMetrics(
        experiment,
        program,
        writers,
        progress,
        step,
        int(state.bad_steps),
        saved=lambda: max(checkpoints.steps(), default=None),
        memory=lambda phase: sum(step_memory(executables[phase].result())),
        idle=lambda: all(executable.done() for executable in executables.values()),
    )
    evaluated, metrics, last_save = progress["evaluated"], {}, ()
    for line in program.attention_lines():
        writers.say(line)
    stop = closing.enter_context(Stop())
    trace = closing.enter_context(Profile(profile, files.local / "profile"))

    def saved_meta(step, evaluated):
        return {
            "next_index": step * experiment.batch_size,
            "objective": type(objective).__name__,
            "phase": objective.phase(step),
            "config": config,
            "data": data.fingerprint,
            "learning_rate": float(experiment.optimizer.learning_rate_at(step)),
            "versions": run_directory.versions(),
            "progress": {"evaluated": evaluated, **step_metrics.progress},
        }

    while True:
        watch.at(f"step {step + 1}")
        stopping, last = stop.asked(step), step >= total
        fresh = {}
        if last and not ended:
            step_metrics.finish()
        if step > evaluated and (last or step % experiment.eval_every == 0) and not stopping:
            step_metrics.drain()
            watch.at(f"the evaluation after step {step}", UNHURRIED)
            start = time.perf_counter()
            try:
                with heard_by(writers.status), timed() as rates:
                    found = evaluation.run(state, stop.hurried)
            except Exception:
                if jax.process_count() == 1 and step not in checkpoints.steps():  # else the others would wait
                    watch.at(f"saving step {step}", UNHURRIED)
                    last_save = step, state, saved_meta(step, evaluated), {}
                    checkpoints.save(*last_save)
                    checkpoints.finish(*last_save)
                    writers.say(f"the evaluation after step {step} failed; the step is saved")
                raise
            if found is None:  # a signal came; the evaluation is due again when the run goes on
                continue
            evaluated, metrics = step, found[0]
            writers.valid(step, *found, {"seconds": time.perf_counter() - start, **rates.per_second()})
            if experiment.best_metric not in metrics:
                writers.say(
                    f"warning: Experiment.best_metric='{experiment.best_metric}' is none of {', '.join(metrics)}"
                )
            fresh = metrics
            files.offer()
            step_metrics.restart_clock()
        if step > 0 and (last or stopping or step % experiment.save_every == 0):
            step_metrics.drain()
            watch.at(f"saving step {step}", UNHURRIED)
            last_save = step, state, saved_meta(step, evaluated), fresh
            checkpoints.save(*last_save)
            step_metrics.restart_clock()
        if last or stopping:
            break

        watch.at(f"step {step + 1}")
        trace.at(step, step_metrics)
        phase = objective.phase(step)
        with step_metrics.waiting():
            batch = next(feed)
        state, new = executables[phase].result()(state, program.put(batch, phase))
        step += 1
        step_metrics.push(step, phase, new)
        writers.advance(step)

    watch.at(f"saving step {step}", UNHURRIED)
    checkpoints.finish(*last_save)
    writers.say(
        f"done: {total} steps in {workdir}"
        if last
        else f"stopped at step {step} of {total}, saved in {checkpoints.directory}; the same command goes on from there"
    )
    return Finished(step, not last, state, metrics)


def _background(closing):
    """A thread that does one thing after the other. A run that ends cancels what has not begun. It does not wait for
    what is under way, or data that are refused would be told only when all is compiled; the interpreter does."""
    pool = ThreadPoolExecutor(1)
    closing.callback(pool.shutdown, wait=False, cancel_futures=True)
    return pool


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

    def at(self, step, step_metrics):
        """Before each step: starts or stops when it is time, with no step in flight."""
        if not self._running and self._first <= step < self._last:  # a run may go on in the midst of them
            step_metrics.drain()
            jax.profiler.start_trace(self._directory)
            self._running = True
        if self._running and step >= self._last:
            step_metrics.drain()
            self.__exit__()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
