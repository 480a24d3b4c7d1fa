"""Compiles MaxText's training step for a topology, in an environment that has MaxText (0.2.5: Python 3.12), and writes
its text and what it takes.

    python benchmarks/maxtext_step.py OUT.json SETTING=VALUE ...

The settings are those of MaxText's base.yml (compile_topology=v5e-256 ...). Beside OUT.json, which holds the compiler's
bytes and the seconds of compilation, OUT.txt holds the program.
"""

import json
import pathlib
import sys
import time

from absl import app


def main(argv):
    import maxtext
    from maxtext.trainers.pre_train import train_compile

    out, settings = pathlib.Path(argv[1]), argv[2:]
    compile_step = train_compile.jit_and_compile

    def measured(*args):
        start = time.perf_counter()
        compiled = compile_step(*args)
        memory = compiled.memory_analysis()
        out.with_suffix(".txt").write_text(compiled.as_text())
        found = {"seconds": time.perf_counter() - start, "arguments": memory.argument_size_in_bytes}
        out.write_text(json.dumps({**found, "temporaries": memory.temp_size_in_bytes}))
        return compiled

    train_compile.jit_and_compile = measured
    base = pathlib.Path(maxtext.__file__).parent / "configs" / "base.yml"
    train_compile.main(["train_compile", str(base), *settings])


if __name__ == "__main__":
    app.run(main, argv=[sys.argv[0], *sys.argv[1:]])
