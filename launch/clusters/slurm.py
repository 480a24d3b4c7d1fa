"""SLURM: one job of one process a GPU, requeued when it is preempted or one of its processes dies.

jax reads who is who from SLURM's own variables and gives each process the GPU of its rank on the node.
"""

import math
import os
import shlex

from launch.clusters import FINAL, ROOT, train_command
from paradigm.errors import UserError


class Slurm:
    def __init__(self, pod, shell):
        self.pod, self.shell = pod, shell

    def create(self):
        self.shell.say("SLURM has no machines to create: `launch.pods run` submits the job")

    def run(self):
        path = f"{self.pod.name}.sbatch"
        script = self.script()
        if self.shell.dry:
            print(f"cat > {path} <<'END'\n{script}END")
        else:
            with open(path, "w") as file:
                file.write(script)
        self.shell.run(["sbatch", path])

    def logs(self, worker="0"):
        self.shell.run(["tail", "-n", "200", "-F", f"{self.pod.name}.log"], tries=1)

    def status(self):
        self.shell.run(["squeue", f"--name={self.pod.name}", "--format=%i %T %M %D %R"])

    def delete(self):
        self.shell.run(["scancel", f"--name={self.pod.name}"])

    def script(self):
        """The job. Every output is appended, so that a requeued job goes on in the same log."""
        pod = self.pod
        if pod.topology.kind != "h100":
            raise UserError(f"--topology={pod.topology.name}: --cluster=slurm takes GPUs, as in --topology=h100:64")
        if pod.topology.slices > 1:
            raise UserError("--slices is for TPUs: write the number of all GPUs into --topology, as in h100:64")
        count = math.prod(pod.topology.shape)
        each = min(count, pod.topology.chip.host)
        if count % each:
            whole = count // each * each
            raise UserError(f"--topology={pod.topology.name}: whole nodes of {each} GPUs, as in h100:{whole}")
        partition = f"\n#SBATCH --partition={pod.partition}" if pod.partition else ""
        train = shlex.join(train_command(pod.train))
        final = "|".join(map(str, FINAL))
        return f"""#!/bin/bash
#SBATCH --job-name={pod.name}
#SBATCH --nodes={count // each}
#SBATCH --ntasks-per-node={each}
#SBATCH --gpus-per-node={each}
#SBATCH --cpus-per-task=8
#SBATCH --time={pod.hours}:00:00{partition}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={pod.name}.log
#SBATCH --signal=TERM@120

# A process that dies ends the others within seconds (launch.run.distributed); the job then goes back into the queue.
cd {shlex.quote(os.fspath(ROOT) if not self.shell.dry else ".")}
srun --kill-on-bad-exit=0 {train}
code=$?
echo "job $SLURM_JOB_ID, start ${{SLURM_RESTART_COUNT:-0}}, ended with exit code $code"
case $code in {final}) exit $code ;; esac
if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {pod.restarts} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
"""
