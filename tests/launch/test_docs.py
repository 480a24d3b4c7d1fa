"""docs/: what they tell people to type exists, and the table of pods is of today's run files."""

import pathlib
import re

import pytest

from launch.aot import table
from launch.run import registry

REPO = pathlib.Path(__file__).parent.parent.parent
PAGES = sorted((REPO / "docs").glob("*.md"))
# Who else defines a command's flags.
ALSO = {"launch.train": ("run.distributed", "run.watchdog"), "launch.pods": ("train",)}


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
    assert rows and table.PAGE.read_text() == table.page(dict(sorted(rows.items())))
    old = sorted({row["run"] for row in rows.values() if row["settings"] != table.digest(row["run"])})
    assert not old, "python -m launch.compile --table " + " ".join(f"--gin_file={run}" for run in old)
    assert all(row["fits"] for row in rows.values())
