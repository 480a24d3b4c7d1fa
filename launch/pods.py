"""Start a run on a pod, follow it, and give the pod back.

    python -m launch.pods run --name=mine --topology=v5e:16x16 --zone=us-west4-a --spot --nfs=10.0.0.2:/share -- \\
        --gin_file=runs/t5_xxl_c4.gin --workdir=/mnt/paradigm/mine
    python -m launch.pods logs --name=mine --zone=us-west4-a        # also status, delete; create only asks for the pod

What stands after -- goes to launch.train on every host. run asks for the pod where it is not there yet, sends this
checkout to every host, starts, and starts again what was preempted or died, until the run is done. --dry_run prints the
commands and runs none. --cluster=slurm submits a GPU job with sbatch; --cluster=gke applies a JobSet with kubectl.
"""

import argparse
import re

from absl import flags

from launch.run import cli
from paradigm.errors import UserError
from paradigm.storage import expand

VERBS = ("create", "run", "logs", "status", "delete")


def main(argv):
    verb, train = (argv[1], argv[2:]) if argv[1:] else ("", [])
    if verb not in VERBS:
        raise UserError(f"{verb!r} is not something to do with a pod: give one of {', '.join(VERBS)}")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?", NAME.value or ""):
        raise UserError(f"--name={NAME.value} must be small letters, digits and hyphens, as in --name=t5-large")
    from launch.aot.topology import parse_topology
    from launch.clusters import Pod, Shell, gke, slurm, tpu

    topology = None
    if verb in ("create", "run"):
        if not TOPOLOGY.value:
            raise UserError("--topology is required, as in --topology=v5e:16x16")
        topology = parse_topology(TOPOLOGY.value, SLICES.value)
    if NFS.value and not re.fullmatch(r"[^:/\s]+:/\S*", NFS.value):
        raise UserError(f"--nfs={NFS.value} must be SERVER:/SHARE, as in --nfs=10.0.0.2:/share")
    if verb == "run":
        check(train)
    pod = Pod(
        NAME.value, topology, tuple(train), ZONE.value, PROJECT.value, SPOT.value, RESERVED.value, NFS.value,
        IMAGE.value, NAMESPACE.value, PARTITION.value, HOURS.value, RESTARTS.value, POLL.value,
    )  # fmt: skip
    cluster = {"tpu": tpu.TPU, "slurm": slurm.Slurm, "gke": gke.GKE}[CLUSTER.value](
        pod, Shell(DRY_RUN.value, PATIENCE.value)
    )
    cluster.logs(WORKER.value) if verb == "logs" else getattr(cluster, verb)()


def check(train):
    """Raises UserError for flags of launch.train that would fail on every host."""
    for flag in ("--gin_file", "--workdir"):
        if not any(word == flag or word.startswith(f"{flag}=") for word in train):
            raise UserError(
                f"{flag} is missing: the flags of launch.train stand after --, as in -- --gin_file=... {flag}=..."
            )
    given = {word.split("=")[0].lstrip("-") for word in train}
    if given & {"distributed", "coordinator", "processes", "process"}:
        raise UserError("launch.pods tells the processes of each other; leave such flags out")
    words = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("gin_file", "gin_param", "import"):
        words.add_argument(f"--{flag}", f"-{flag}", dest=flag, action="append", default=[])
    words = vars(words.parse_known_args(train)[0])
    # A name that does not exist costs a minute here, and an hour there. A file may be there alone.
    if all(path.startswith("runs/") or expand(path).is_file() for path in words["gin_file"]):
        from launch.run import experiment, registry

        experiment.validate(registry.parse(words["gin_file"], words["gin_param"], words["import"]), None)


if __name__ == "__main__":
    CLUSTER = flags.DEFINE_enum("cluster", "tpu", ["tpu", "slurm", "gke"], "Cloud TPU VMs, a SLURM cluster, or GKE.")
    NAME = flags.DEFINE_string("name", None, "Of the pod and the run; small letters, digits and hyphens.")
    TOPOLOGY = flags.DEFINE_string("topology", None, "As in launch.compile: v5e:16x16, v5p:4x4x4, h100:64.")
    SLICES = flags.DEFINE_integer("slices", 1, "So many slices of that shape, joined by the data-center network.")
    ZONE = flags.DEFINE_string("zone", None, "Of Cloud TPUs, as in us-west4-a.")
    PROJECT = flags.DEFINE_string("project", None, "Of Google Cloud, where it is not gcloud's own.")
    SPOT = flags.DEFINE_bool("spot", False, "Cheaper machines that may be taken away; the run then waits for new ones.")
    RESERVED = flags.DEFINE_bool("reserved", False, "From a reservation.")
    NFS = flags.DEFINE_string(
        "nfs", None, "SERVER:/SHARE that every host mounts at /mnt/paradigm; --workdir belongs there."
    )
    IMAGE = flags.DEFINE_string("image", None, "For GKE: a container image of this checkout.")
    NAMESPACE = flags.DEFINE_string("namespace", "default", "For GKE.")
    PARTITION = flags.DEFINE_string("partition", None, "For SLURM.")
    HOURS = flags.DEFINE_integer("hours", 24, "For SLURM: the longest that a job may run before it is requeued.")
    RESTARTS = flags.DEFINE_integer("restarts", 100, "How often a run that dies is started again.")
    WORKER = flags.DEFINE_string("worker", "0", "Whose log: a host's number, or all.")
    POLL = flags.DEFINE_float("poll", 60.0, "Seconds between two looks at the pod.")
    PATIENCE = flags.DEFINE_float("patience", 5.0, "Seconds until a command that a busy cloud refused is given again.")
    DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands, and run none.")
    cli.run(main)
