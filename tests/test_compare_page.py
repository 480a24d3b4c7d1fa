"""The commands of docs/compare.md, as they are written: a person pastes them."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

REPO = pathlib.Path(__file__).parent.parent


@pytest.mark.slow  # launch.sweep and launch.compare have tests of their own, and test_docs knows each flag
def test_a_sweep_and_its_table_work_as_pasted(tmp_path):
    """Only the place, the length and the number of values are other ones."""
    (block,) = re.findall(r"```bash\n(.*?workdirs/rates.*?)```", (REPO / "docs" / "compare.md").read_text(), re.DOTALL)
    for written, here, times in [
        ("workdirs/rates", f"{tmp_path}/rates", 3),
        ("seed=0,1,2", "seed=0,1", 1),
        (
            "peak=0.01,0.02'",
            "peak=0.01' --gin_param='Experiment.total_steps=3' --gin_param='Experiment.evaluators=()'",
            1,
        ),
        ("python -m", f"{sys.executable} -m", 2),
    ]:
        assert block.count(written) == times, written
        block = block.replace(written, here)
    done = subprocess.run(["bash", "-e", "-c", block], cwd=REPO, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.name for path in (tmp_path / "rates").iterdir()}
    assert names == {"seed=0,peak=0.01", "seed=1,peak=0.01", "compare.md", "compare.csv", "compare.png"}
    page = (tmp_path / "rates" / "compare.md").read_text()
    assert re.search(r"^\| seed=\*,peak=0.01 \| 0.01 \| NextToken \| 2 \| 100 \| .* ± ", page, re.MULTILINE), page
