"""docs/: what they tell people to type exists, and the table of pods is of today's run files."""

import ast
import json
import pathlib
import re

import pytest

from launch.aot import table
from launch.run import registry

REPO = pathlib.Path(__file__).parent.parent.parent
PAGES = sorted((REPO / "docs").glob("*.md"))
# Who else defines a command's flags.
ALSO = {"launch.train": ("run.distributed", "run.watchdog"), "launch.pods": ("train",), "launch.sweep": ("train",)}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_commands_exist(page):
    text = page.read_text()
    for line in re.findall(r"python -m ([^`\n]+(?:\\\n[^`\n]+)*)", text):
        module, *words = line.split("#")[0].split()
        names = [module, *(f"launch.{name}" for name in ALSO.get(module, ()))]
        source = "".join(REPO.joinpath(*name.split(".")).with_suffix(".py").read_text() for name in names)
        for flag in {re.match(r"--(\w+)", word)[1] for word in words if re.match(r"--\w", word)}:
            assert f'"{flag}"' in source or f'"--{flag}"' in source, f"{module} has no --{flag}"
    for run in re.findall(r"--gin_file=(runs/\S+?\.gin)", text):
        assert (registry.SHIPPED / run).is_file(), run
    for link in re.findall(r"\]\((\S+?\.md)\)", text):
        assert (page.parent / link).is_file(), link


def test_the_rows_of_pods_are_of_todays_run_files():
    rows = table.load()
    page = table.PAGE.read_text()
    assert rows and page == table.page(dict(sorted(rows.items())), page)
    old = sorted({row["run"] for row in rows.values() if not table.is_of_today(row)})
    assert not old, "python -m launch.compile --table " + " ".join(f"--gin_file={run}" for run in old)
    assert all(row["fits"] for row in rows.values())


def test_a_row_of_pods_is_old_when_a_setting_changed_and_not_when_one_was_added_at_its_default():
    row = next(row for row in table.load().values() if row["run"] == "runs/gpt_1b_c4.gin")
    without = lambda name: {**row, "settings": {k: v for k, v in row["settings"].items() if k != name}}
    assert "objective.model.qk_norm" in row["settings"] and "objective.model.heads" in row["settings"]
    assert table.is_of_today(without("objective.model.qk_norm"))  # False, which is the class's default
    assert not table.is_of_today(without("objective.model.heads"))  # has no default
    changed = {**row["settings"], "objective.model.heads": "7"}
    assert not table.is_of_today({**row, "settings": changed})
    assert not table.is_of_today({**row, "settings": {**row["settings"], "objective.gone": "1"}})


def undocumented(names):
    """Those of these names of metrics.jsonl that docs/metrics.md does not explain."""
    table = re.findall(r"^\| (`.*?) \|", (REPO / "docs" / "metrics.md").read_text(), re.MULTILINE)
    known = {name: re.sub(r"[A-Z]+", r"[\\w@/]+", name) for cell in table for name in re.findall(r"`(\S+?)`", cell)}
    assert len(known) > 40
    general = re.compile("|".join(pattern for name, pattern in known.items() if "PART" not in name))
    part = re.compile(r"(train|valid)/\w+/(?=(\w+/)?[^/]+$)")  # 'train/recall/accuracy' is the part's 'train/accuracy'
    return {name for name in names if not general.fullmatch(name) and not general.fullmatch(part.sub(r"\1/", name, 1))}


def written_names():
    """The names that objectives and evaluators give, by their sources: `metrics`, and what `run` returns."""
    for package in ("t5like", "vision", "multimodal"):
        for path in (REPO / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                given = []
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("metrics", "cut"):
                    given, kinds = [node.value], ("train/", "valid/")
                elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Loss":
                    given = [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "metrics")]
                    kinds = ("train/", "valid/")
                elif isinstance(node, ast.FunctionDef) and node.name in ("run", "compute"):
                    values = [n.value for n in ast.walk(node) if isinstance(n, ast.Return)]
                    given = [v.elts[0] if isinstance(v, ast.Tuple) else v for v in values]
                    kinds = ("valid/",)
                keys = [k for value in given if isinstance(value, ast.Dict) for k in value.keys]
                yield from (kind + k.value for k in keys if isinstance(k, ast.Constant) for kind in kinds)


def test_every_metric_is_explained():
    from launch.run import step_metrics
    from vision import probe

    found = set(written_names())
    assert {"train/bits_per_byte", "valid/infill_exact", "valid/unigram/bits_per_byte", "valid/scale"} <= found
    found |= {f"valid/{kind}{name}" for name in probe.METHODS for kind in ("", "random/")}
    found |= set(re.findall(r'speed\["(\w+)"\]', pathlib.Path(step_metrics.__file__).read_text()))
    found |= {"valid/zero_shot@5", "valid/chance/image_to_text@10", "train/recall/accuracy", "valid/loss/a", "step"}
    assert not undocumented(found)
    assert undocumented({"train/news", "valid/accuracies", "seconds_per_stop"}) == {
        "train/news", "valid/accuracies", "seconds_per_stop",
    }  # fmt: skip


def undocumented_in(path):
    """The same for a file that a run wrote."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return undocumented({name for row in rows for name in [*row, *row["speed"]] if name != "speed"})
