"""Compile a run's train steps for a pod that is not there: whether they fit, what they send and how long they take.

    python -m launch.compile --gin_file=runs/gpt_1b_c4.gin --topology=v5e:16x16 --mesh=data:1,fsdp:-1,tensor:1
    python -m launch.compile --gin_file=runs/gpt_1b_c4.gin --topology=v5e:16x16 --mesh=search   # which mesh is fastest?
    python -m launch.compile --table                             # docs/pods.md: every pod run on its own pod

No accelerator and no data are needed, only the compiler (pip install -e '.[aot]'); cpu:N needs nothing and shows how
the partitioner cuts the step. A table names the terms of the step that need the most time and the lines of source that
make them. The last line is one JSON object; the exit code is 1 when the step does not fit. Without --mesh the run
file's own is used, widened or narrowed to the chips of the topology.
"""

import json
import sys

from absl import flags

from launch.run import cli
from paradigm.errors import UserError


def main(argv):
    if argv[1:]:
        raise UserError(f"'{argv[1]}' is not a flag: did you mean --gin_file={argv[1]}? See --help")
    if TABLE.value:
        from launch.aot import table

        sys.exit(table.write(GIN_FILE.value, MISSING.value, TOPOLOGY.value))
    if not GIN_FILE.value or not TOPOLOGY.value:
        raise UserError("--gin_file and --topology are required, as in --gin_file=runs/demo.gin --topology=v5e:2x4")
    from launch.aot import search, terms
    from launch.aot.report import report
    from launch.aot.topology import parse_topology
    from launch.run import registry
    from launch.run.experiment import bound, completed

    topology = parse_topology(TOPOLOGY.value, SLICES.value)
    devices = topology.devices()
    experiment = completed(bound(registry.parse(GIN_FILE.value, GIN_PARAM.value, IMPORT.value)))
    if MESH.value == "search":
        found = search.search(experiment, topology, devices, lambda line: print(line, flush=True))
        print("\n".join(search.table(found["search"])))
    else:
        found = report(experiment, topology, devices, MESH.value)
    for phase, one in found.get("phases", {found["phase"]: found}).items():
        if one.get("terms"):
            print(f"the terms of {phase} that need the most time, by a roofline of each:")
            print("\n".join(terms.table(one["terms"])))
    for line in found.pop("advice"):
        print(f"does not fit: {line}", file=sys.stderr)
    print(json.dumps({"run": GIN_FILE.value[0], **found}))
    sys.exit(0 if found["fits"] else 1)


if __name__ == "__main__":
    GIN_FILE = flags.DEFINE_multi_string("gin_file", [], "As in launch.train.")
    GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "As in launch.train.")
    IMPORT = flags.DEFINE_multi_string("import", [], "As in launch.train.")
    TOPOLOGY = flags.DEFINE_string(
        "topology", None, "What to compile for, as in v5e:16x16, v5p:4x4x4, h100:8 or cpu:8."
    )
    SLICES = flags.DEFINE_integer("slices", 1, "So many slices of that shape, joined by the data-center network.")
    MESH = flags.DEFINE_string("mesh", None, "How the chips are used, as in launch.train; 'search' tries several.")
    TABLE = flags.DEFINE_bool(
        "table", False, "Write docs/pods.md for every run file that names a pod, or for each --gin_file, and stop."
    )
    MISSING = flags.DEFINE_bool("missing", False, "With --table: only rows that are not there, or not of today.")
    cli.run(main)
