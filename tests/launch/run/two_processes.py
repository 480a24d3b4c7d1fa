"""One process of a run of several, as tests start it.

    python -m tests.launch.run.two_processes INDEX PORT WORKDIR STEPS ...

It ends as launch.train does. A fault "KIND:PROCESS:STEP" strikes one process before that step.
"""

import argparse
import os
import signal
import sys
import time

import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("index", type=int)
parser.add_argument("port")
parser.add_argument("workdir")
parser.add_argument("steps", type=int)
parser.add_argument("--count", type=int, default=2)
parser.add_argument("--devices", type=int, default=2)
parser.add_argument("--mesh", default="data:-1")
parser.add_argument("--interleave", action="store_true", help="devices of both processes in turn, as on a torus")
parser.add_argument("--fault", default="none:0:0")
parser.add_argument("--step_timeout", type=float, default=0)
parser.add_argument("--join_timeout", type=int, default=60)


def axes(mesh):
    return {"axis_names": mesh.axis_names, "axis_types": mesh.axis_types}


def strike(kind):
    if kind == "raise":
        raise RuntimeError("out of luck")
    if kind == "sleep":
        time.sleep(1000)
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[kind])


def main(argv):
    kind, process, at = arguments.fault.split(":")
    struck = kind != "none" and int(process) == arguments.index
    from absl import flags

    from launch.run import distributed

    values = {"coordinator": f"127.0.0.1:{arguments.port}", "processes": arguments.count, "process": arguments.index}
    for name, value in {**values, "join_timeout": arguments.join_timeout}.items():
        setattr(flags.FLAGS, name, value)
    distributed.join()

    from launch.run import loop, program
    from tests.launch import small

    put, asked, seen = program.Program.put, loop.Stop.asked, []

    def noted(self, batch, phase):
        if not seen:
            print("rows", batch["index"][:, 1].tolist(), flush=True)
        seen.append(1)
        return put(self, batch, phase)

    def faulty(self, step):
        if struck and step == int(at):
            strike(kind)
        return asked(self, step)

    program.Program.put, loop.Stop.asked = noted, faulty
    if arguments.interleave:
        import jax

        mesh, count = loop.make_mesh, arguments.count
        turns = sorted(range(count * arguments.devices), key=lambda n: n % arguments.devices)
        loop.make_mesh = lambda spec: jax.sharding.Mesh(
            np.array(jax.devices())[turns].reshape(mesh(spec).devices.shape), **axes(mesh(spec))
        )
    every = 6 if arguments.steps < 100 else arguments.steps
    other = {"seed": 7} if struck and kind == "config" else {}
    workdir = f"{arguments.workdir}.mine" if struck and kind == "alone" else arguments.workdir
    experiment = small.experiment(total_steps=arguments.steps, eval_every=every, mesh=arguments.mesh, **other)
    loop.train(experiment, workdir, step_timeout=arguments.step_timeout)


if __name__ == "__main__":
    arguments = parser.parse_args()
    # The last word counts; how programs are compiled is the caller's choice.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={arguments.devices}"
    os.environ.update(JAX_PLATFORMS="cpu", PJRT_NPROC="16", XLA_FLAGS=flags)
    from launch.run import cli

    sys.argv[1:] = []
    cli.run(main)
