"""Break a training run at random moments in every way there is, let it go on, and compare it with one nobody touched.

    python -m tests.launch.run.faults --trials=20 --directory=/tmp/faults
    python -m tests.launch.run.faults --trials=50 --objective=next_token,moco_v2,clip
    python -m tests.launch.run.faults --trials=8 --objective=next_token,mae --platform=cuda

Each trial starts the same command in a directory of its own, strikes it once or twice, and starts it again until it
ends. The ways take turns: kill -9 while it starts or between steps, kill -9 in the middle of a save, SIGTERM, kill -9
and then harm to the newest checkpoint (a file cut off, emptied, removed, or one bit of it flipped), kill -9 of one of
two processes, and going on with another mesh (these two on CPUs only). Then it compares what launch.show prints, the
sha256 of params, optimizer state and extra among it, and every row of metrics.jsonl but its speed: all bits, or after
another mesh the first loss within 1e-5. It prints a table. A run that differs makes the exit code 1, and its directory
stays.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[3]
_SOURCE = re.compile(r"resumed from step (\d+)|started from scratch")  # the line that says where a start goes on
KINDS = ("kill", "in a save", "term", "harm", "one of two", "another mesh")
ONE_DEVICE = KINDS[:4]
HARMS = ("cut off", "emptied", "removed", "flipped")
SMALLER = [  # any smoke run, with a row and a checkpoint every other step
    "--gin_param=Experiment.log_every = 2",
    "--gin_param=Experiment.save_every = 2",
    "--gin_param=Experiment.eval_every = 25",
    "--gin_param=Experiment.eval_batches = 2",
    "--gin_param=Experiment.evaluators = ()",
    "--gin_param=Experiment.keep = 2",
]
TEXT = [
    "--gin_param=TextData.source = '{directory}/corpus'",
    "--gin_param=TextData.valid = 0.2",
    "--gin_param=TextData.tokenizer = 'bytes'",
    "--gin_param=NextToken.length = 64",
    "--gin_param=Experiment.batch_size = 8",
    "--gin_param=Experiment.total_steps = 100",
]
OTHER = ["--gin_param=Experiment.batch_size = 32", "--gin_param=Experiment.total_steps = 60"]


def run_flags(objective):
    """Flags of launch.train for the smoke run of an objective, made smaller."""
    own = TEXT if objective == "next_token" else OTHER
    return [f"--gin_file=runs/smoke/{objective}.gin", *SMALLER, *own]


@dataclasses.dataclass
class Outcome:
    """How a finished run looks from outside."""

    shown: dict
    rows: list

    @classmethod
    def of(cls, workdir):
        command = [sys.executable, "-m", "launch.show", f"--workdir={workdir}"]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return cls(json.loads(shown.splitlines()[-1]), rows(workdir))


@dataclasses.dataclass
class Strike:
    """What was done to a run and what came of it.

    how: in words. row, saved: the newest step that was then logged, and committed and left whole. begun: what a save
    had begun. resumed: where the next start went on; None when that start was struck before it said so.
    """

    how: str
    row: int
    saved: int
    begun: list
    resumed: int | None = None


class Faults:
    """Reference runs, and trials of the same command.

    Args:
        directory: where the runs lie; the reference run in `whole` (of two processes in `whole2`), text in `corpus`.
        flags: those of launch.train but --workdir; {directory} is replaced.
        platform: cpu, or cuda (with XLA's deterministic operations: docs/launch.md).

    Raises:
        RuntimeError: a reference run failed.
    """

    def __init__(self, directory, flags=None, platform="cpu"):
        self.platform = platform
        self.directory = pathlib.Path(directory).absolute()
        (self.directory / "corpus").mkdir(parents=True, exist_ok=True)
        for path in (ROOT / "launch").glob("*.py"):
            shutil.copyfile(path, self.directory / "corpus" / f"{path.stem}.txt")
        self.flags = [flag.replace("{directory}", str(self.directory)) for flag in flags or run_flags("next_token")]
        self.flags += [f"--compilation_cache={self.directory / 'xla'}"]
        self.startup, self._whole = 0.0, {}
        self.whole = self._reference(1)
        self.steps = self.whole.shown["step"]

    def _reference(self, processes):
        if processes not in self._whole:
            workdir = self.directory / ("whole" if processes == 1 else f"whole{processes}")
            start = time.monotonic()
            started = self._start(workdir, processes)
            while not rows(workdir) and started[0].poll() is None:
                time.sleep(0.05)
            self.startup = self.startup or time.monotonic() - start
            if any([process.wait() for process in started]):
                raise RuntimeError(f"the run that nobody strikes failed: {log(workdir)[-2000:]}")
            self._whole[processes] = Outcome.of(workdir)
        return self._whole[processes]

    def trial(self, number, seed=0, kinds=KINDS):
        """(kind, [Strike, ...], what differs from the whole run: '' if nothing does; then its directory goes)."""
        rng, kind = random.Random(f"{seed} {number}"), kinds[(number - 1) % len(kinds)]
        processes = 2 if kind == "one of two" else 1
        whole = self._reference(processes)
        workdir, strikes, problem = self.directory / f"trial{number}", [], ""
        shutil.rmtree(workdir, ignore_errors=True)
        for _ in range(rng.choice((1, 1, 2))):
            started = self._start(workdir, processes)
            how = self._wait(started[0], workdir, rng, kind)
            how, problem = self._strike(started, how, kind, rng)
            if problem:
                break
            self._resumed(strikes, workdir)
            row, (saved, begun) = newest_row(workdir), checkpoints(workdir)
            if kind == "harm":
                harmed, saved = harm(workdir, rng)
                how = f"{how}, then {harmed}"
            strikes.append(Strike(how, row, saved, begun))
        moved = kind == "another mesh"
        codes = [process.wait() for process in self._start(workdir, processes, moved)] if not problem else [0]
        self._resumed(strikes, workdir)
        if not problem:
            problem = f"exit codes {codes}: {log(workdir)[-500:]}" if any(codes) else ""
        problem = problem or self._compare(Outcome.of(workdir), whole, strikes, moved)
        if not problem:
            shutil.rmtree(workdir)
        return kind, strikes, problem

    def _wait(self, process, workdir, rng, kind):
        """Until a random moment: one in five while the process starts, the others after a random step."""
        if kind in ("kill", "one of two") and rng.random() < 0.2:
            delay = rng.uniform(0, self.startup)
            time.sleep(delay)
            return f"{delay:.2f} s after its start"
        first = max(checkpoints(workdir)[0], 4 if kind == "harm" else 0)  # harm leaves a whole one before it
        target, delay = rng.randrange(min(first, self.steps - 1), self.steps), rng.uniform(0, 0.15)
        while process.poll() is None and not (_SOURCE.search(log(workdir)) and newest_row(workdir) >= target):
            time.sleep(0.005)
        if kind == "in a save":
            while process.poll() is None and not any(name.endswith(".tmp") for name in checkpoints(workdir)[1]):
                time.sleep(0.001)
            return f"in a save after row {target}"
        time.sleep(delay)
        return f"{1000 * delay:.0f} ms after row {target}"

    def _strike(self, started, how, kind, rng):
        """(what was done, what went wrong in being done it)."""
        struck = rng.choice(started)
        struck.send_signal(signal.SIGTERM if kind == "term" else signal.SIGKILL)
        begun = time.monotonic()
        try:
            codes = [process.wait(timeout=60 if kind == "term" else 30) for process in started]
        except subprocess.TimeoutExpired:
            for process in started:
                process.kill()
            return how, "a process did not end within 30 s of the other"
        if kind == "term" and codes != [0]:
            return how, f"SIGTERM ended it with exit code {codes[0]}"
        if len(started) > 1:
            how = f"process {started.index(struck)}, {how}; the other ended in {time.monotonic() - begun:.1f} s"
        return how + (" (it had ended)" if kind != "term" and codes[started.index(struck)] == 0 else ""), ""

    def _resumed(self, strikes, workdir):
        """Notes in the last strike where the start after it went on."""
        found = _SOURCE.search(log(workdir))
        if strikes and found:
            strikes[-1].resumed = int(found[1] or 0)

    def _compare(self, found, whole, strikes, moved):
        lost = [s for s in strikes if s.resumed not in (None, s.saved)]
        lost = [f"went on from step {s.resumed} when {s.saved} was saved" for s in lost]
        if moved:
            return "; ".join(self._nearly(found, whole, strikes) + lost)
        different = [f"{name} {found.shown[name]}" for name in whole.shown if found.shown[name] != whole.shown[name]]
        if found.rows != whole.rows:
            first = next((pair for pair in zip(found.rows, whole.rows) if pair[0] != pair[1]), None)
            different.append(f"{len(found.rows)} rows for {len(whole.rows)}, first to differ {first}")
        return "; ".join(different + lost)

    def _nearly(self, found, whole, strikes):
        """Sums are added in another order: the rows before are the same to the bit, the next loss within 1e-5."""
        pick = lambda rows: {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
        one, other, step = pick(whole.rows), pick(found.rows), strikes[-1].saved
        for name in ("step", "next_index", "objective", "phase"):
            if found.shown[name] != whole.shown[name]:
                return [f"{name} {found.shown[name]} for {whole.shown[name]}"]
        if one.keys() != other.keys():
            return [f"rows of steps {sorted(other)}"]
        before = [s for s in one if s <= step and one[s] != other[s]]
        after = min((s for s in one if s > step), default=None)
        if before:
            return [f"the row of step {before[0]} changed"]
        if after is not None and not math.isclose(one[after], other[after], rel_tol=1e-5):
            return [f"loss {other[after]} after step {step}, wanted {one[after]}"]
        return []

    def _start(self, workdir, processes=1, moved=False):
        """Its processes, at work. moved: on two virtual devices, which share the parameters."""
        environment = {**os.environ, "JAX_PLATFORMS": self.platform}
        # Without a test's virtual devices, and compiled as the caller's programs are.
        given = environment.get("XLA_FLAGS", "").split()
        compiled = " ".join(flag for flag in given if "_device_count=" not in flag)
        environment["XLA_FLAGS"] = compiled
        if self.platform != "cpu":
            environment["XLA_FLAGS"] = "--xla_gpu_deterministic_ops=true"
        flags = [*self.flags, f"--workdir={workdir}"]
        if moved:
            environment["XLA_FLAGS"] = f"{compiled} --xla_force_host_platform_device_count=2"
            environment["PJRT_NPROC"] = "16"
            flags.append("--mesh=fsdp:2")
        if processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            flags += [
                f"--coordinator=127.0.0.1:{port}",
                f"--processes={processes}",
                "--join_timeout=60",
                "--mesh=data:-1",
            ]
        started = []
        for index in range(processes):
            which = [f"--process={index}"] if processes > 1 else []
            name = f"{workdir.name}.log" if not index else f"{workdir.name}.{index}.log"
            with open(self.directory / name, "wb") as output:
                command = [sys.executable, "-m", "launch.train", *flags, *which]
                started.append(subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=environment))
        return started


def harm(workdir, rng):
    """(what was done to the newest checkpoint, the step that is left whole). Nothing where there is no other."""
    steps = sorted(int(name) for name in os.listdir(workdir / "checkpoints") if name.isdecimal())
    if len(steps) < 2:
        return "nothing harmed", max(steps, default=0)
    path = rng.choice(sorted(p for p in (workdir / "checkpoints" / str(steps[-1])).rglob("*") if p.is_file()))
    how, size = rng.choice(HARMS), path.stat().st_size
    if how == "removed":
        path.unlink()
    elif how == "flipped" and size:
        with open(path, "r+b") as file:
            at = rng.randrange(size)
            file.seek(at)
            byte = file.read(1)[0] ^ 1 << rng.randrange(8)
            file.seek(at)
            file.write(bytes([byte]))
    elif size:
        os.truncate(path, size // 2 if how == "cut off" else 0)
    else:
        how = "left alone (it is empty)"
        return f"{path.name} {how}", steps[-1]
    return f"{path.name} of {steps[-1]} {how}", steps[-2]


def rows(workdir):
    """The rows of metrics.jsonl without what depends on the clock."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in row.items() if name != "speed"} for row in found]


def newest_row(workdir):
    return max((row["step"] for row in rows(workdir)), default=0)


def checkpoints(workdir):
    """(newest committed step or 0, names of what a save had begun or was removing)."""
    names = os.listdir(workdir / "checkpoints") if (workdir / "checkpoints").exists() else []
    return max((int(n) for n in names if n.isdecimal()), default=0), [n for n in names if not n.isdecimal()]


def log(workdir):
    """What the last start in this directory printed (its process 0)."""
    return (workdir.parent / f"{workdir.name}.log").read_text(errors="replace")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", default="/tmp/faults", help="where the runs go; emptied")
    text = "whose smoke run, made smaller; of several, the trials take turns"
    parser.add_argument("--objective", default="next_token", help=text)
    parser.add_argument("--kinds", help="what is done, in turn; all that the platform can when not given")
    parser.add_argument("--platform", default="cpu", help="what the runs run on: cpu, or cuda")
    parser.add_argument("flags", nargs="*", help="after --: flags of launch.train instead of a smoke run's")
    arguments = parser.parse_args()
    directory = pathlib.Path(arguments.directory)
    if directory.exists() and not all((path / "whole").exists() for path in directory.iterdir()):
        parser.error(f"--directory={directory} holds something else, and would be emptied")
    shutil.rmtree(directory, ignore_errors=True)
    kinds = arguments.kinds.split(",") if arguments.kinds else KINDS if arguments.platform == "cpu" else ONE_DEVICE
    runs = {name: run_flags(name) for name in arguments.objective.split(",")}
    runs = {"run": arguments.flags} if arguments.flags else runs
    line = "{:<12}{:>5}  {:<13}{:<62}{:>4}{:>7}{:>9}  {}"
    same = 0
    for turn, (name, flags) in enumerate(runs.items()):
        faults = Faults(directory / name, flags, arguments.platform)
        print(f"{name}: {faults.steps} steps, first row after {faults.startup:.1f} s\n")
        print(line.format("run", "trial", "fault", "when", "row", "saved", "resumed", "result"))
        for number in range(turn + 1, arguments.trials + 1, len(runs)):
            own = (number - 1) // len(runs) + 1  # of this run's trials
            kind, strikes, different = faults.trial(own, arguments.seed, kinds)
            same += not different
            for strike in strikes or [Strike("", 0, 0, [])]:
                fine = "within 1e-5" if kind == "another mesh" else "the same, bit for bit"
                result = (different or fine) if strike is (strikes or [strike])[-1] else ""
                resumed = "?" if strike.resumed is None else strike.resumed
                cells = name, number, kind, strike.how, strike.row, strike.saved, resumed, result
                print(line.format(*cells), flush=True)
        print()
    print(f"{same} of {arguments.trials} the same")
    return 0 if same == arguments.trials else 1


if __name__ == "__main__":
    sys.exit(main())
