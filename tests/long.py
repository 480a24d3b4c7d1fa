"""Which tests `make test` leaves to `make test-long`, so that it takes ten minutes: those of long.txt, by their time.

    PYTEST_ADDOPTS=--durations=0 make test test-long > LOG     with nothing compiled before, on an idle machine
    python -m tests.long LOG                                   writes long.txt anew

A test is long that takes SECONDS or more, or LOSS_SECONDS where it compares an objective's loss with its paper's. For
each guarantee of the table in docs/contributing.md the test stays that says the most.
"""

import collections
import pathlib
import re
import sys

SECONDS, LOSS_SECONDS = 3.0, 10.0
FILE = pathlib.Path(__file__).with_name("long.txt")
STAY = re.compile(
    r"contract.*(resume|sharding|abstract)\[(mixed-)?(span_corruption|clip)\]"
    r"|test_mae.py::test_(resume|sharding|abstract)|test_multi_crop.py::test_resume\[DINOv2\]"
    r"|test_configs.py::test_a_toy_of_it_trains_and_evaluates"
    r"|test_resume.py::test_(stopped_anywhere_equals_uninterrupted\[two_terms\]|the_command_ends_well_on_sigterm)"
    r"|test_two_processes.py::test_they_equal_one_process"
    r"|test_checkpoint.py::test_(kill_in_the_middle_of_a_save|every_moment_of_a_commit_is_a_safe_one)"
    r"|test_methods.py::test_(resume_is_bit_exact|sharded_equals)|test_adapted_runs.py::test_what_it_refuses"
    r"|test_configs.py::test_every_objective_has_a_run|test_convert.py::test_command"
)
LOSS = re.compile(r"papers|official|value_and_gradient|by_a_loop|by_loops")


def is_long(node, listed):
    """Whether a test, by pytest's name for it, is in the list, alone or with all of its parameters."""
    return node in listed or node.partition("[")[0] in listed


def listed():
    return frozenset(FILE.read_text().splitlines())


def measured(log):
    """{test: seconds with all that it sets up}, of what `--durations=0` prints."""
    took = collections.Counter()
    for match in re.finditer(r"^([\d.]+)s (?:call|setup|teardown) +(tests/\S.*?)\s*$", log, re.MULTILINE):
        took[match[2]] += float(match[1])
    return took


def chosen(took):
    """The names of the list: a test of which each parameter is long stands there once."""
    every, long = collections.defaultdict(set), collections.defaultdict(set)
    for node, seconds in took.items():
        name = node.partition("[")[0]
        every[name].add(node)
        if seconds >= (LOSS_SECONDS if LOSS.search(node) else SECONDS) and not STAY.search(node):
            long[name].add(node)
    return sorted(node for name, nodes in long.items() for node in ([name] if nodes == every[name] else nodes))


if __name__ == "__main__":
    took = measured(pathlib.Path(sys.argv[1]).read_text())
    FILE.write_text("".join(f"{node}\n" for node in chosen(took)))
    rest = sum(seconds for node, seconds in took.items() if not is_long(node, listed()))
    print(f"{len(listed())} lines; what is left takes {rest / sum(took.values()):.0%} of the time")
