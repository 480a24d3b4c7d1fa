"""One process of a run of two, as tests start it: python -m tests.launch.two_processes INDEX PORT WORKDIR STEPS."""

import os
import sys
import traceback

if __name__ == "__main__":
    index, port, workdir, steps = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    os.environ.update(JAX_PLATFORMS="cpu", PJRT_NPROC="16", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    import jax

    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, shutdown_timeout_seconds=10)
    from absl import flags

    flags.FLAGS.mark_as_parsed()

    from launch import loop, program
    from tests.launch import small

    put, seen = program.Program.put, []

    def noted(self, batch, phase):
        if not seen:
            print("rows", batch["index"][:, 1].tolist(), flush=True)
        seen.append(1)
        return put(self, batch, phase)

    program.Program.put = noted
    try:
        loop.train(small.experiment(total_steps=steps, eval_every=6 if steps < 100 else steps), workdir)
    except BaseException:  # an exception that is not the end of the process would leave the other one waiting
        traceback.print_exc()
        os._exit(13)
