import json

import pytest

from evaluation.metrics import mean_metrics
from evaluation.results import ensemble, read_results


def test_ensemble_of_the_reference_codes_files(golden):
    expected = json.loads((golden.folder / "ensemble_expected.json").read_text())
    metrics = golden.recommender_json["ensemble"]
    files = [golden.folder / "ensemble" / f"test_results_{epoch}.json" for epoch in (7, 8, 9, 10)]
    results = [read_results(file) for file in files]
    joined = ensemble(results)
    assert joined.items == expected["ranking_top10"]
    assert joined.targets == expected["labels"]
    names = list(metrics["metrics"])
    assert mean_metrics(joined.ranks(), names) == pytest.approx(metrics["metrics"])
    for result, alone in zip(results, metrics["per_file"], strict=True):
        assert mean_metrics(result.ranks(), names) == pytest.approx(alone)
