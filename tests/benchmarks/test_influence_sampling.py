import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_runs import flags

import pretrain
from benchmarks import influence_sampling
from benchmarks.influence_sampling import compare, main
from model.recommender import load_recommender
from training.config import PretrainConfig
from training.curriculum import estimate_influence, sampling_probabilities
from training.data import load_data
from training.setup import resolve_config
from utils.config import parse_config
from utils.errors import InputError


@pytest.fixture
def run(dataset: Path, tmp_path: Path) -> Path:
    """Return a finished pre-training of two epochs with both checkpoints."""
    settings = {"run_name": "run", "epochs": 2, "epoch_per_stage": [1, 1], "save_interval": 1, "val_delay": 0}
    pretrain.main(flags(dataset, tmp_path / "runs", **settings))
    return tmp_path / "runs" / "Tiny" / "run"


def test_scores_of_all_parts_are_the_exact_ones(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(influence_sampling, "PARTS", 10)
    output = tmp_path / "a.json"
    main([f"--run={run}", "--epochs=2", "--ratios=[0.1,0.3]", "--moment_steps=4", f"--output={output}"])
    report = json.loads(output.read_text())["2"]
    assert [len(report["scores"][ratio]) for ratio in ("0.1", "0.3", "1.0")] == [10, 3, 1]
    assert [(row["ratio"], row["tau"]) for row in report["table"]] == [(0.1, 1.0), (0.3, 1.0), (0.1, 3.0), (0.3, 3.0)]

    config, _ = parse_config(PretrainConfig, [f"--config_file={run / 'config.yaml'}"], "", "")
    data = load_data(*resolve_config(config, set()), Accelerator())
    torch.manual_seed(0)
    recommender = load_recommender(run / "checkpoints" / "epoch_2")
    moments = influence_sampling.make_moments(recommender, data, config, 4)
    optimizer = torch.optim.AdamW(recommender.parameters())
    sizes = [parameter.numel() for parameter in recommender.parameters()]
    parts = zip(recommender.parameters(), *(moment.split(sizes) for moment in moments), strict=True)
    for parameter, first, second in parts:
        optimizer.state[parameter] = {"exp_avg": first.view_as(parameter), "exp_avg_sq": second.view_as(parameter)}
    positions = data.order.positions
    exact = estimate_influence(recommender, optimizer, data.tokenization, positions, data.valid, 64, Accelerator())
    assert report["scores"]["1.0"][0] == pytest.approx(exact.tolist(), rel=1e-4)


def test_compare_by_hand():
    exact = np.asarray([[1.0, 2.0, 3.0]])
    row = compare({1.0: exact, 0.1: np.asarray([[1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])}, tau=2.0)[0]
    assert (row["rank_correlation_mean"], row["rank_correlation_min"]) == (pytest.approx(0.75), pytest.approx(0.5))
    largest = np.diff(sampling_probabilities(exact[0], 2.0)[1:])[0]
    assert row["largest_difference_max"] == pytest.approx(largest)
    assert row["largest_difference_mean"] == pytest.approx(largest / 2)


def test_ratios_out_of_range(tmp_path: Path):
    with pytest.raises(InputError, match=r"--ratios=\[0.7\] must be in 0.01..0.5"):
        main([f"--run={tmp_path}", "--ratios=[0.7]"])
