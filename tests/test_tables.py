"""The published figures, recomputed from docs/results/*.csv with pandas and scipy alone."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

DOCS = Path(__file__).parent.parent / "docs"
spec = importlib.util.spec_from_file_location("tables", DOCS / "tables.py")
assert spec
assert spec.loader
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)

STUDIES = sorted((DOCS / "results").glob("*.csv"))
WORDS = "\n".join(page.read_text() for page in [DOCS / "findings.md", *(DOCS / "claims").glob("*.md")])


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_row_of_a_published_study_stands_in_the_docs(path):
    assert [row for row in tables.study_table(path) if row not in WORDS] == []


def test_our_own_statistics_found_the_same_effects():
    runs = pd.read_csv(DOCS / "results" / "activations-small-1.csv").dropna(subset=["arm/difference"])
    ours = runs.groupby("model.activation")[["arm/difference", "arm/low", "arm/high"]].first()
    recomputed = tables.differences(DOCS / "results" / "activations-small-1.csv")
    assert len(recomputed) == 5
    for name, effect in recomputed.items():
        assert effect == pytest.approx(ours.loc[name].tolist(), abs=1e-9)
