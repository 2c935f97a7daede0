"""Work on Ray: every item once, a user's mistake as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_shards.errors import UserError
from data_shards.importing.importers import ImportTools, import_dataset
from index_build.ray_map import ray_map
from tests.unit.import_helpers import jsonl


@pytest.mark.ray
def test_an_import_on_ray_gives_the_same_bytes_and_the_same_mistake(tmp_path: Path) -> None:
    rows = [{"query": f"q{n % 30}", "positive": f"a{n % 45}"} for n in range(120)]
    inputs = [jsonl(tmp_path / f"in{at}.jsonl", rows[at::4]) for at in range(4)]
    import_dataset("pairs", inputs, tmp_path / "here")
    with ray_map(2, None) as run:
        import_dataset("pairs", inputs, tmp_path / "there", tools=ImportTools(run_parts=run))
        inputs[2].write_text("broken\n")
        with pytest.raises(UserError, match=r"in2\.jsonl, line 1: not JSON"):
            import_dataset("pairs", inputs, tmp_path / "no", tools=ImportTools(run_parts=run))
    here = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert here == {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
