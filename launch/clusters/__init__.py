"""How a run is started on a cluster: one file for each kind of cluster. `launch.pods` is the command."""

import dataclasses
import pathlib
import shlex
import subprocess
import time

from paradigm.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
SHARE = "/mnt/paradigm"  # where --nfs is mounted on every host
SAVED = 75  # exit code of a run that SIGTERM ended early: it is to go on
FINAL = (0, 2, 130)  # exit codes of launch.train after which starting again would change nothing


@dataclasses.dataclass(frozen=True)
class Pod:
    """What was asked for; see the flags of launch.pods.

    train: the flags of launch.train, --workdir among them.
    """

    name: str
    topology: object = None
    train: tuple = ()
    zone: str | None = None
    project: str | None = None
    spot: bool = False
    reserved: bool = False
    nfs: str | None = None
    image: str | None = None
    namespace: str = "default"
    partition: str | None = None
    hours: int = 24
    restarts: int = 100
    poll: float = 60.0


def train_command(train, python=".venv/bin/python"):
    """launch.train as one of several processes, as a list of words."""
    return [python, "-m", "launch.train", "--distributed", f"--interrupted_code={SAVED}", *train]


class Shell:
    """Runs commands, or only prints them.

    dry: print each command, and each text that it reads, and run nothing. patience: seconds before a command that a
    busy cloud refused is given again, doubled each time.
    """

    # What a cloud says when the same command may well succeed a little later.
    TRANSIENT = ("unavailable", "deadline exceeded", "internal error", "connection refused", "connection reset",
               "connection timed out", "rate limit", "rateLimitExceeded", "socket timed out", "[255]")  # fmt: skip
    HINTS = {
        "not found on PATH": "install it, or use --dry_run to see the commands",
        "quota": "ask for more quota in that zone, take another --zone, or a smaller --topology",
        "no more capacity": "take another --zone, or wait: a queued resource gets its turn",
        "reauthentication": "log in: gcloud auth login",
        "not currently have an active account": "log in: gcloud auth login",
        "permission": "the account lacks a role: roles/tpu.admin for TPUs",
        "already exists": "delete it first (launch.pods delete), or take another --name",
        "not found": "look at launch.pods status, and at --name, --zone and --project",
    }

    def __init__(self, dry, patience=5.0):
        self.dry, self._patience = dry, patience

    def run(self, command, stdin=None, tries=4, capture=False, show=None):
        """Runs a command. capture: returns what it printed; otherwise that goes to the terminal.

        Raises:
            UserError: it failed, for another reason than one that passes, or `tries` times; with what it said last.
        """
        if self.dry:
            text = f" <<'END'\n{stdin}END" if stdin is not None else ""
            print(show or shlex.join(command) + text)
            return ""
        for turn in range(tries):
            try:
                done = subprocess.run(
                    command, input=stdin, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE if capture else None
                )
            except FileNotFoundError:
                raise UserError(f"{command[0]} not found on PATH: {self.HINTS['not found on PATH']}") from None
            if done.returncode == 0:
                return done.stdout or ""
            said = done.stderr.strip()
            if turn + 1 < tries and any(word.lower() in said.lower() for word in self.TRANSIENT):
                time.sleep(self._patience * 2**turn)
                continue
            raise UserError(self._failed(command, done.returncode, said))

    def say(self, text):
        """A remark to a person; a comment among printed commands."""
        print(f"# {text}" if self.dry else text, flush=True)

    def _failed(self, command, code, said):
        last = said.splitlines()[-1] if said else "it said nothing"
        hint = next((hint for word, hint in self.HINTS.items() if word in said.lower()), "")
        name = " ".join(word for word in command[:6] if not word.startswith("-"))
        return f"{name} failed ({code}): {last}{f'; {hint}' if hint else ''}"


def restarting(train, restarts, pause=10):
    """A bash script that runs a command, and runs it again unless it would only end in the same way again."""
    final = "|".join(map(str, FINAL))
    return f"""for start in $(seq 0 {restarts}); do
  {train}
  code=$?
  echo "start $start ended with exit code $code at $(date -u +%FT%TZ)"
  case $code in {final}) break ;; esac
  sleep {pause}
done
"""
