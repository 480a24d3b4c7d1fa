"""Cloud TPU VMs by gcloud: a queued resource, all its hosts at once, started again when it is preempted.

create asks for the slice(s). run waits for them, sends this checkout to every host, installs it there (uv brings the
Python), starts launch.train on all, and watches: a host's process that ends is started again by its host; a slice that
is taken away is asked for again. See cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources.
"""

import os
import shlex
import subprocess
import tempfile
import time

from launch.clusters import FINAL, ROOT, SHARE, restarting, train_command
from paradigm.errors import UserError

TYPES = {"v4": ("v4", 2), "v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}  # name, count a chip
RUNTIMES = {  # cloud.google.com/tpu/docs/runtimes
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
LOST = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING")
ABSENT = "absent"


class TPU:
    def __init__(self, pod, shell):
        self.pod, self.shell = pod, shell
        if not pod.zone:
            raise UserError("--zone is required, as in --zone=us-west4-a")

    def create(self):
        pod, kind = self.pod, self.pod.topology.kind
        if kind not in TYPES:
            raise UserError(
                f"--topology={pod.topology.name}: Cloud TPU has {', '.join(TYPES)}; --cluster=slurm for GPUs"
            )
        name, count = TYPES[kind]
        chips = pod.topology.chips // pod.topology.slices
        nodes = [f"--node-id={pod.name}"]
        if pod.topology.slices > 1:
            nodes = [f"--node-count={pod.topology.slices}", f"--node-prefix={pod.name}"]
        if name == "v4":  # a number of cores does not say the shape; gcloud takes one for v4 only
            what = [f"--type={name}", "--topology=" + "x".join(map(str, pod.topology.shape))]
        else:
            what = [f"--accelerator-type={name}-{chips * count}"]
        how = ["--spot"] * pod.spot + ["--reserved"] * pod.reserved
        self.shell.run(self._gcloud("create", *nodes, *what, f"--runtime-version={RUNTIMES[kind]}", *how))

    def run(self):
        """Until the run ends; raises UserError when it ends badly."""
        pod, shell = self.pod, self.shell
        while True:
            if not shell.dry and self._state() in LOST:
                shell.say(f"{pod.name} was taken away; asking for it again")
                self.delete()
            if shell.dry or self._state() == ABSENT:
                self.create()
            self._wait()
            self._sync()
            self._everywhere(self.setup())
            self._everywhere(self.start())
            shell.say(f"started on every host of {pod.name}; `launch.pods logs --name={pod.name}` follows it")
            code = self._watch()
            if code is None:
                continue
            if code:
                raise UserError(f"the run ended with exit code {code}; its end: launch.pods logs --name={pod.name}")
            shell.say("the run is done; launch.pods delete gives the machines back")
            return

    def logs(self, worker="0"):
        command = "tail -n 200 -F ~/paradigm.log"
        self.shell.run(self._gcloud("ssh", "--node=all", f"--worker={worker}", f"--command={command}"), tries=1)

    def status(self):
        self.shell.run(self._gcloud("describe", "--format=value(state.state,tpu.nodeSpec.nodeId)"))
        self._everywhere('echo "$(hostname): $(cat ~/paradigm.code 2>/dev/null || tail -n 1 ~/paradigm.log)"')

    def delete(self):
        self.shell.run(self._gcloud("delete", "--force", "--quiet"))

    def setup(self):
        """What every host does once, and no harm if it does it again."""
        extras = "tpu,gcs" if any("gs://" in word for word in self.pod.train) else "tpu"
        lines = [
            "set -e",
            "rm -rf ~/paradigm.new && mkdir -p ~/paradigm ~/paradigm.new && tar xzf ~/paradigm.tgz -C ~/paradigm.new",
            "rsync -a --delete --exclude=.venv ~/paradigm.new/ ~/paradigm/ && cd ~/paradigm",
            "test -x ~/.local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh",
            "test -x .venv/bin/python || ~/.local/bin/uv venv --quiet --python=3.13 .venv",
            f"~/.local/bin/uv pip install --quiet --python=.venv/bin/python --editable '.[{extras}]'",
        ]
        if self.pod.nfs:
            lines += [
                f"sudo mkdir -p {SHARE}",
                "dpkg -s nfs-common >/dev/null 2>&1 || sudo apt-get -qq install -y nfs-common",
                f"mountpoint -q {SHARE} || sudo mount -t nfs {shlex.quote(self.pod.nfs)} {SHARE}",
            ]
        return "\n".join(lines) + "\n"

    def start(self):
        """Ends what an earlier call started, and starts the run in a session of its own, which outlives ssh's."""
        train = shlex.join(train_command(self.pod.train))
        loop = restarting(train, self.pod.restarts)
        return f"""cd ~/paradigm
test -f ~/paradigm.pid && kill -TERM -- -$(cat ~/paradigm.pid) 2>/dev/null && sleep 20
rm -f ~/paradigm.code
cat > ~/paradigm.sh <<'RUN'
{loop}echo $code > ~/paradigm.code
RUN
setsid nohup bash ~/paradigm.sh >> ~/paradigm.log 2>&1 < /dev/null &
echo $! > ~/paradigm.pid
"""

    def _gcloud(self, verb, *flags):
        common = [f"--zone={self.pod.zone}"] + [f"--project={self.pod.project}"] * bool(self.pod.project)
        return ["gcloud", "compute", "tpus", "queued-resources", verb, self.pod.name, *common, *flags]

    def _everywhere(self, script):
        command = self._gcloud("ssh", "--node=all", "--worker=all", f"--command={script}")
        self.shell.run(command)

    def _state(self):
        try:
            return self.shell.run(self._gcloud("describe", "--format=value(state.state)"), capture=True).strip()
        except UserError as error:
            if "NOT_FOUND" in str(error) or "not found" in str(error).lower() and "PATH" not in str(error):
                return ABSENT
            raise

    def _wait(self):
        """Until the slice is there."""
        if self.shell.dry:
            self.shell.say(f"waits until {self.pod.name} is ACTIVE:")
            self.shell.run(self._gcloud("describe", "--format=value(state.state)"))
            return
        before = None
        while (state := self._state()) != "ACTIVE":
            if state in LOST or state == ABSENT:
                raise UserError(
                    f"{self.pod.name} is {state}: launch.pods delete, and run again, in another --zone perhaps"
                )
            if state != before:
                self.shell.say(f"{self.pod.name} is {state}")
            before = state
            time.sleep(self.pod.poll)

    def _sync(self):
        """This checkout, what git ignores left out, as one file to every host."""
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "paradigm.tgz")
            pack = f"git -C {shlex.quote(str(ROOT))} ls-files -z --cached --others --exclude-standard"
            pack += f" | tar czf {path} -C {shlex.quote(str(ROOT))} --null --ignore-failed-read -T -"
            if self.shell.dry:
                path, pack = "paradigm.tgz", pack.replace(path, "paradigm.tgz").replace(str(ROOT), ".")
                print(pack)
            elif subprocess.run(["bash", "-o", "pipefail", "-c", pack]).returncode:
                raise UserError(f"{ROOT} cannot be packed: launch.pods needs a git checkout and tar")
            copy = ["gcloud", "compute", "tpus", "queued-resources", "scp", path, f"{self.pod.name}:~/paradigm.tgz"]
            self.shell.run([*copy, *self._gcloud("scp")[6:], "--node=all", "--worker=all"])

    def _watch(self):
        """The worst exit code that the run ended with on a host; None when the slice was taken away."""
        if self.shell.dry:
            self.shell.say(
                f"each {self.pod.poll:g} s, until the run has ended; when the slice is lost, from the start:"
            )
            self.shell.run(self._gcloud("describe", "--format=value(state.state)"))
            self.shell.run(self._gcloud("ssh", "--node=all", "--worker=all", "--command=cat ~/paradigm.code"))
            return 0
        while True:
            time.sleep(self.pod.poll)
            if self._state() != "ACTIVE":
                return None
            try:
                command = "cat ~/paradigm.code 2>/dev/null || echo running"
                said = self.shell.run(
                    self._gcloud("ssh", "--node=all", "--worker=all", f"--command={command}"), capture=True
                )
            except UserError:  # a host that does not answer is preempted in a moment, or answers next time
                continue
            codes = [int(line) for line in said.split() if line.lstrip("-").isdecimal()]
            if codes and ("running" not in said or set(codes) & set(FINAL[1:])):
                return max(codes)
