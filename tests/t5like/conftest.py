import pytest

from tests.t5like.corpora import text


@pytest.fixture
def folder(tmp_path):
    """Thirty small documents in two folders."""
    for i in range(30):
        path = tmp_path / "corpus" / ("ab"[i % 2]) / f"{i:02d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(i))
    return tmp_path / "corpus"
