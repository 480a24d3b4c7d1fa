"""GKE: a JobSet of one pod a TPU host, restarted as a whole. The cluster, its TPU nodes and an image must be there.

The manifest's fields are those of cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice and jobset.sigs.k8s.io.
"""

import math

from launch.clusters import FINAL, SHARE, train_command
from paradigm.errors import UserError

ACCELERATORS = {"v4": "tpu-v4-podslice", "v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}


class GKE:
    def __init__(self, pod, shell):
        self.pod, self.shell = pod, shell

    def create(self):
        self.shell.say("the cluster's TPU node pools must be there; `launch.pods run` applies the JobSet")

    def run(self):
        self.shell.run(self._kubectl("apply", "--filename=-"), stdin=self.manifest())

    def logs(self, worker="0"):
        which = f"jobset.sigs.k8s.io/jobset-name={self.pod.name}"
        if worker != "all":
            which += f",batch.kubernetes.io/job-completion-index={worker}"
        self.shell.run(self._kubectl("logs", f"--selector={which}", "--prefix", "--follow", "--tail=200"), tries=1)

    def status(self):
        self.shell.run(self._kubectl("get", "jobset,pods", f"--selector=paradigm-run={self.pod.name}"))

    def delete(self):
        self.shell.run(self._kubectl("delete", "jobset", self.pod.name))

    def _kubectl(self, *words):
        return ["kubectl", f"--namespace={self.pod.namespace}", *words]

    def manifest(self):
        pod, topology = self.pod, self.pod.topology
        if topology.kind not in ACCELERATORS:
            raise UserError(f"--topology={topology.name}: --cluster=gke takes TPUs, as in --topology=v5e:16x16")
        if not pod.image:
            raise UserError("--image is required: a container image of this checkout, installed with '.[tpu]'")
        chips = math.prod(topology.shape)
        each = min(chips, topology.chip.host)
        arguments = "".join(f"\n              - {_quoted(flag)}" for flag in train_command(pod.train)[3:])
        spot = '\n              cloud.google.com/gke-spot: "true"' if pod.spot else ""
        volume, mount = "", ""
        if pod.nfs:
            server, _, path = pod.nfs.partition(":")
            mount = f"\n              volumeMounts:\n              - {{name: share, mountPath: {SHARE}}}"
            volume = "\n            volumes:\n            - name: share"
            volume += f"\n              nfs: {{server: {server}, path: {path}}}"
        return f"""apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {pod.name}
  labels: {{paradigm-run: {pod.name}}}
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: {pod.restarts}
    rules:
    - action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: {topology.slices}
    template:
      spec:
        parallelism: {chips // each}
        completions: {chips // each}
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {{containerName: train, operator: In, values: {[c for c in FINAL if c]}}}
        template:
          metadata:
            labels: {{paradigm-run: {pod.name}}}
          spec:
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
            restartPolicy: Never
            terminationGracePeriodSeconds: 120
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: {ACCELERATORS[topology.kind]}
              cloud.google.com/gke-tpu-topology: {"x".join(map(str, topology.shape))}{spot}
            containers:
            - name: train
              image: {pod.image}
              command: [python, -m, launch.train]
              args:{arguments}
              resources:
                limits: {{google.com/tpu: {each}}}{mount}{volume}
"""


def _quoted(text):
    """A YAML string in single quotes."""
    return "'" + text.replace("'", "''") + "'"
