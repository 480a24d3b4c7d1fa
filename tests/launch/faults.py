"""Kill -9 a training run at random moments, let it go on, and compare it bit for bit with one that nobody touched.

    python -m tests.launch.faults --trials=20 --directory=/tmp/faults

Each trial starts the same command in a directory of its own, kills it once or twice (while it starts, between two
steps, in the middle of a save), and starts it again until it ends. Then it compares what launch.show prints, the sha256
of params, optimizer state and extra among it, and every row of metrics.jsonl but its speed. It prints a table. A
run that differs makes the exit code 1, and its directory stays.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
_SOURCE = re.compile(r"resumed from step (\d+)|started from scratch")  # the line that says where a start goes on
RUN = [  # the next_token smoke run, made smaller, with a row and a checkpoint every other step
    "--gin_file=runs/smoke/next_token.gin",
    "--gin_param=TextData.source = '{directory}/corpus'",
    "--gin_param=TextData.valid = 0.2",
    "--gin_param=TextData.tokenizer = 'bytes'",
    "--gin_param=vocab_size = 359",
    "--gin_param=NextToken.length = 64",
    "--gin_param=Experiment.batch_size = 8",
    "--gin_param=Experiment.log_every = 2",
    "--gin_param=Experiment.save_every = 2",
    "--gin_param=Experiment.eval_every = 25",
    "--gin_param=Experiment.eval_batches = 2",
    "--gin_param=Experiment.evaluators = ()",
    "--gin_param=Experiment.keep = 2",
    "--gin_param=total_steps = 100",
]


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
class Kill:
    """A kill and what came of it.

    moment: when it came. row, saved: the newest step that was then logged, and committed. begun: what a save had begun.
    resumed: where the next start went on; None when that start was killed before it said so.
    """

    moment: str
    row: int
    saved: int
    begun: list
    resumed: int | None = None


class Faults:
    """A reference run, and trials of the same command.

    Args:
        directory: where the runs lie; the reference run in `whole`, and in `corpus` some text.
        flags: those of launch.train but --workdir; {directory} is replaced.

    Raises:
        RuntimeError: the reference run failed.
    """

    def __init__(self, directory, flags=RUN):
        self.directory = pathlib.Path(directory).absolute()
        (self.directory / "corpus").mkdir(parents=True, exist_ok=True)
        for path in (ROOT / "launch").glob("*.py"):
            shutil.copyfile(path, self.directory / "corpus" / f"{path.stem}.txt")
        self.flags = [flag.replace("{directory}", str(self.directory)) for flag in flags]
        self.flags += [f"--compilation_cache={self.directory / 'xla'}"]
        whole = self.directory / "whole"
        start = time.monotonic()
        process = self._start(whole)
        while not rows(whole) and process.poll() is None:
            time.sleep(0.05)
        self.startup = time.monotonic() - start
        if process.wait():
            raise RuntimeError(f"the run that nobody kills ended with {process.returncode}: {log(whole)[-2000:]}")
        self.whole = Outcome.of(whole)
        self.steps = self.whole.shown["step"]

    def trial(self, number, seed=0):
        """([Kill, ...], what differs from the whole run: '' when nothing does). Its directory goes if nothing does."""
        rng = random.Random(f"{seed} {number}")
        workdir, kills = self.directory / f"trial{number}", []
        shutil.rmtree(workdir, ignore_errors=True)
        for _ in range(rng.choice((1, 1, 2))):
            process = self._start(workdir)
            moment = self._wait(process, workdir, rng)
            process.kill()
            if process.wait() == 0:
                moment += " (it had ended)"
            self._resumed(kills, workdir)
            kills.append(Kill(moment, newest_row(workdir), *checkpoints(workdir)))
        code = self._start(workdir).wait()
        self._resumed(kills, workdir)
        different = f"exit code {code}: {log(workdir)[-500:]}" if code else self._compare(Outcome.of(workdir), kills)
        if not different:
            shutil.rmtree(workdir)
        return kills, different

    def _wait(self, process, workdir, rng):
        """Until a random moment: one in five while the process starts, the others after a random step."""
        if rng.random() < 0.2:
            delay = rng.uniform(0, self.startup)
            time.sleep(delay)
            return f"{delay:.2f} s after its start"
        target, delay = rng.randrange(checkpoints(workdir)[0], self.steps), rng.uniform(0, 0.15)
        while process.poll() is None and not (_SOURCE.search(log(workdir)) and newest_row(workdir) >= target):
            time.sleep(0.005)
        time.sleep(delay)
        return f"{1000 * delay:.0f} ms after row {target}"

    def _resumed(self, kills, workdir):
        """Notes in the last kill where the start after it went on."""
        found = _SOURCE.search(log(workdir))
        if kills and found:
            kills[-1].resumed = int(found[1] or 0)

    def _compare(self, found, kills):
        whole = self.whole
        different = [f"{name} {found.shown[name]}" for name in whole.shown if found.shown[name] != whole.shown[name]]
        if found.rows != whole.rows:
            first = next((pair for pair in zip(found.rows, whole.rows) if pair[0] != pair[1]), None)
            different.append(f"{len(found.rows)} rows for {len(whole.rows)}, first to differ {first}")
        lost = [kill for kill in kills if kill.resumed not in (None, kill.saved)]
        return "; ".join(different + [f"went on from step {k.resumed} when {k.saved} was saved" for k in lost])

    def _start(self, workdir):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        environment.pop("XLA_FLAGS", None)  # a test's virtual devices
        command = [sys.executable, "-m", "launch.train", *self.flags, f"--workdir={workdir}"]
        with open(self.directory / f"{workdir.name}.log", "wb") as output:
            return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=environment)


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
    """What the last start in this directory printed."""
    return (workdir.parent / f"{workdir.name}.log").read_text(errors="replace")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", default="/tmp/faults", help="where the runs go; emptied")
    parser.add_argument("flags", nargs="*", help="after --: flags of launch.train instead of the next_token smoke run")
    arguments = parser.parse_args()
    directory = pathlib.Path(arguments.directory)
    if directory.exists() and any(directory.iterdir()) and not (directory / "whole").exists():
        parser.error(f"--directory={directory} holds something else, and would be emptied")
    shutil.rmtree(arguments.directory, ignore_errors=True)
    faults = Faults(arguments.directory, arguments.flags or RUN)
    print(f"{faults.steps} steps, first row after {faults.startup:.1f} s, {json.dumps(faults.whole.shown['sha256'])}\n")
    line = "{:>5}  {:<36}{:>4}{:>7}  {:<10}{:>8}  {}"
    print(line.format("trial", "killed", "row", "saved", "begun", "resumed", "result"))
    same = 0
    for number in range(1, arguments.trials + 1):
        kills, different = faults.trial(number, arguments.seed)
        same += not different
        for kill in kills:
            result = (different or "the same, bit for bit") if kill is kills[-1] else ""
            resumed = "?" if kill.resumed is None else kill.resumed
            cells = number, kill.moment, kill.row, kill.saved, ",".join(kill.begun), resumed, result
            print(line.format(*cells), flush=True)
    print(f"\n{same} of {arguments.trials} the same")
    return 0 if same == arguments.trials else 1


if __name__ == "__main__":
    sys.exit(main())
