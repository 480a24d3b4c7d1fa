"""Rules of the house that a program can check: arrows between packages, file sizes, imports, entry points."""

import ast
import importlib
import json
import pathlib
import re
import subprocess
import sys

import pytest

REPO = pathlib.Path(__file__).parent.parent
PACKAGES = ("paradigm", "t5like", "vision", "multimodal", "launch", "benchmarks")
FILES = sorted(p for package in PACKAGES for p in (REPO / package).rglob("*.py"))
ALLOWED = {  # who may know whom
    "paradigm": {"paradigm"},
    "t5like": {"paradigm", "t5like"},
    "vision": {"paradigm", "vision"},
    "multimodal": {"paradigm", "t5like", "vision", "multimodal"},
    "launch": {"paradigm", "t5like", "vision", "multimodal", "launch"},
    "benchmarks": {"paradigm", "t5like", "vision", "multimodal", "launch", "benchmarks"},
}
ROOMS = {  # the same inside launch: whom a room may know beside itself; the commands, at its top, may know all
    "storage": set(),
    "run": {"storage"},
    "aot": {"run", "storage"},
    "clusters": {"run", "storage"},
    "results": {"run", "storage"},
}
LAUNCH_ONLY = {"gin", "absl", "orbax", "tensorflow", "tensorflow_datasets", "google"}  # when imported at the top
ENTRY_POINTS = (
    "launch.train",
    "launch.evaluate",
    "launch.prepare",
    "launch.show",
    "launch.compare",
    "launch.sweep",
    "launch.convert",
    "launch.compile",
    "launch.pods",
    "benchmarks.step",
    "benchmarks.gpu",
    "benchmarks.input",
    "benchmarks.vision",
    "benchmarks.adaptation",
    "benchmarks.multimodal",
    "benchmarks.language",
    "benchmarks.pairs",
)


NAMES = {path: ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__") for path in FILES}


def imported_modules(path, top_only=False):
    """Full names of our own modules that a file imports; `from launch.run import mesh` names launch.run.mesh."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in NAMES.values() else node.module for name in below]
        else:
            continue
        yield from (name for name in found if name.split(".")[0] in PACKAGES)


def imports(path, top_only=False):
    """Top-level names of the modules that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPO)))
def test_arrows_and_size(path):
    package = path.relative_to(REPO).parts[0]
    ours = set(imports(path)) & set(PACKAGES)
    assert ours <= ALLOWED[package], f"{path} imports {sorted(ours - ALLOWED[package])}"
    if package in ("paradigm", "t5like", "vision", "multimodal"):
        assert not set(imports(path, top_only=True)) & LAUNCH_ONLY
    if "gin" in set(imports(path)):
        assert path == REPO / "launch" / "run" / "registry.py", "gin is imported in launch/run/registry.py alone"
    assert len(path.read_text().splitlines()) <= 600, "it has outgrown its room"
    assert path.stem not in sys.stdlib_module_names or path.stem == "__init__"


def test_arrows_inside_launch():
    """storage <- run <- {aot, clusters, results} <- commands."""
    for path in FILES:
        _, room, *rest = NAMES[path].split(".") + [""]
        if not path.is_relative_to(REPO / "launch" / room) or room not in ROOMS:
            continue
        for name in imported_modules(path):
            if name.split(".")[0] == "launch":
                known = (name.split(".") + [""])[1]
                assert known == room or known in ROOMS[room], f"{path} imports {name}"


def test_launch_has_no_other_rooms():
    launch = REPO / "launch"
    assert {path.parent.relative_to(launch).as_posix() for path in launch.rglob("*.py")} == {".", *ROOMS}
    commands = {name.split(".")[1] for name in ENTRY_POINTS if name.startswith("launch.")}
    assert {path.stem for path in launch.glob("*.py")} == {"__init__", "__main__", "load", *commands}


def test_no_circle_of_imports():
    """Modules that import each other at their top, directly or around others, cannot be read or imported alone."""
    graph = {NAMES[path]: set(imported_modules(path, top_only=True)) & set(NAMES.values()) for path in FILES}
    while free := {name for name, known in graph.items() if not known & graph.keys()}:
        graph = {name: known for name, known in graph.items() if name not in free}
    assert not graph, f"in a circle, or importing one: {sorted(graph)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_imports(package):
    files = [p.relative_to(REPO).with_suffix("") for p in FILES if p.is_relative_to(REPO / package)]
    names = [".".join(p.parts).removesuffix(".__init__") for p in files]
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)


def test_data_side_modules_do_not_import_jax():
    modules = """paradigm.dataset paradigm.schedule t5like.corrupt t5like.tokenizers t5like.windows t5like.data
        t5like.records vision.preprocess vision.data vision.synthetic_scenes multimodal.data
        multimodal.preprocess""".split()
    code = f"import {', '.join(modules)}, sys; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)


def test_every_package_is_installed():
    """An install that is not editable has what setup.py lists."""
    listed = set(re.findall(r'^    "([a-z0-9_.]+)",$', (REPO / "setup.py").read_text(), re.MULTILINE))
    there = {".".join(p.parent.relative_to(REPO).parts) for p in FILES if p.name == "__init__.py"}
    assert {name for name in there if not name.startswith("benchmarks")} <= listed


def test_packages_are_this_checkout():
    for name in PACKAGES:
        module = __import__(name)
        assert pathlib.Path(module.__path__[0]).is_relative_to(REPO)


HELP = """
import json, os, runpy, sys, tempfile
import jax, orbax.checkpoint  # what takes long to import, once for all
for module in sys.argv[1:]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if not os.fork():
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            sys.argv[:] = [module, "--help"]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            sys.exit(0)
        code = os.waitstatus_to_exitcode(os.wait()[1])
        out.seek(0), err.seek(0)
        print(json.dumps([module, code, out.read(), err.read()]))
"""


def test_entry_points_answer_help():
    done = subprocess.run([sys.executable, "-c", HELP, *ENTRY_POINTS], capture_output=True, text=True, cwd=REPO)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [module for module, *_ in answers] == list(ENTRY_POINTS), done.stderr
    for module, code, out, err in answers:
        assert code in (0, 1), (module, err)  # absl's own --help exits with 1
        assert module in out and "--" in out and "Traceback" not in err, (module, out, err)


def test_tests_keep_to_their_rooms():
    for path in (REPO / "tests").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 600, f"{path} has outgrown its room"


def test_nothing_is_unpickled():
    for path in FILES:
        text = path.read_text()
        assert "allow_pickle=True" not in text and "pickle" not in set(imports(path)), path


def test_readme_commands_exist():
    """Modules, flags, run files and make targets that the README names are there; its Python lines compile."""
    text = (REPO / "README.md").read_text()
    makefile = (REPO / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"--gin_file=(runs/\S+?\.gin)", text):
        assert (REPO / "gin_configs" / path).is_file(), path
    for line in re.findall(r"python -m ([^`\n]+(?:\\\n[^`\n]+)*)", text):
        module, *words = line.split()
        source = REPO.joinpath(*module.split(".")).with_suffix(".py").read_text()
        for flag in {re.match(r"--(\w+)", word)[1] for word in words if re.match(r"--\w", word)} - {"compile"}:
            assert f'"{flag}"' in source or f'"--{flag}"' in source, f"{module} has no --{flag}"
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, "README.md", "exec")


def test_each_kind_of_objective_has_one_that_stands_for_it():
    """What tests/contract.py leaves to `make test-all` is left because another of its kind is there in `make test`."""
    from tests import contract

    files = [
        path for path in (REPO / "tests").rglob("test_*.py") if "\nglobals().update(contract.tests(" in path.read_text()
    ]
    modules = [importlib.import_module(".".join(path.relative_to(REPO).with_suffix("").parts)) for path in files]
    found = [(case.kind, name) for module in modules for name, case in module.CASES.items()]
    assert {kind: name for kind, name in found if contract.STANDS_FOR[kind] == name} == contract.STANDS_FOR
    assert len(found) > 50 and found.count(("encoder", "masked_lm")) == 1
    with pytest.raises(ValueError, match="'novel' is no kind of tests/contract.py: encoder, "):
        contract.Case(None, None, "novel")


def test_what_is_left_out_by_its_time_is_there():
    """Each line of tests/long.txt names a test, so that one that was renamed is measured anew."""
    from tests import contract, long

    own, common = set(contract.tests({})), {}
    for node in long.listed():
        file, _, name = node.partition("[")[0].partition("::")
        text = common.setdefault(file, (REPO / file).read_text())
        assert f"def {name}(" in text or name in own and "contract.tests(" in text, node
        assert long.is_long(node, long.listed()) and not long.STAY.search(node), node
    assert not long.is_long("tests/test_house.py::test_no_such_thing[1]", long.listed())
