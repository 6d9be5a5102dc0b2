import json
from pathlib import Path

import pytest
import torch

import model.packing
from benchmarks import speed, stages
from benchmarks.speed import SpeedConfig
from benchmarks.stages import Sizes, Stage
from model.recommender import Architecture, build_recommender
from model.t5 import T5Recommender
from utils.errors import InputError

TINY = Sizes(
    shrink=400,
    rounds=1,
    tokenizers=2,
    train_batch=4,
    eval_batch_20=3,
    eval_batch_50=2,
    num_layers=1,
    d_model=8,
    d_ff=12,
    hidden_sizes=(16, 8),
    kept_epochs=4,
)
FIELDS = {
    *("stage", "precision", "reference", "project", "unit", "ratio", "ratio_min", "ratio_max", "fraction_of_matmul"),
    *("peak_memory_mb", "reference_peak_memory_mb", "equal", "rounds"),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speed, "QUICK", TINY)


def measure(output: Path, *flags: str) -> dict:
    speed.main(["--quick", f"--output={output}", *flags])
    return json.loads(output.read_text())


def test_every_stage_is_equal_to_the_reference_way(tmp_path: Path):
    result = measure(tmp_path / "a.json")
    assert set(result) == {"rows", "machine"}
    assert all(set(row) == FIELDS for row in result["rows"])
    assert [(row["stage"], row["precision"]) for row in result["rows"]] == [
        *(("train_step", "float32"), ("train_step", "bf16"), ("eval_beam20", "float32"), ("eval_beam50", "float32")),
        *(("influence", "float32"), ("influence", "bf16"), ("rqvae_epoch", "float32"), ("rqvae_epoch", "bf16")),
        *(("export", "float32"), ("load", "float32")),
    ]
    assert [row["stage"] for row in result["rows"] if not row["equal"]] == []
    assert all(row["ratio_min"] <= row["ratio"] <= row["ratio_max"] for row in result["rows"])
    assert {row["unit"] for row in result["rows"]} == {"samples/s", "s"}
    assert result["machine"]["float32_matmul_gflops"] > 0


def test_stages_are_added_to_the_file(tmp_path: Path):
    output = tmp_path / "a.json"
    measure(output, "--stages=load")
    kept = measure(output, "--stages=eval_beam20")["rows"]
    assert [row["stage"] for row in kept] == ["eval_beam20", "load"]
    assert [row["stage"] for row in measure(output, "--stages=load")["rows"]] == ["eval_beam20", "load"]


def test_a_compiled_step_is_equal_to_the_reference_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stages, "COMPILE", {"backend": "aot_eager", "dynamic": False, "fullgraph": True})
    rows = measure(tmp_path / "a.json", "--stages=train_step_compiled")["rows"]
    expected = [("train_step_compiled", precision, True) for precision in ("float32", "bf16")]
    assert [(row["stage"], row["precision"], row["equal"]) for row in rows] == expected
    assert model.packing.PACKING_DEVICES == ("cpu",)


def test_another_dataset(dataset: Path, tmp_path: Path):
    rows = measure(tmp_path / "a.json", f"--dataset={dataset}", "--stages=eval_beam20,load")["rows"]
    assert [(row["stage"], row["equal"]) for row in rows] == [("eval_beam20", True), ("load", True)]


def wrong_beams(*arguments, **settings):
    sequences, scores = generate(*arguments, **settings)
    return sequences.flip(1), scores


def wrong_gradient(recommender, batches, num_examples):
    return mean_gradient(recommender, list(batches)[:1], num_examples)


generate, mean_gradient = T5Recommender.generate, stages.mean_gradient


@pytest.mark.parametrize(
    ("stage", "owner", "name", "wrong"),
    [
        ("eval_beam50", T5Recommender, "generate", wrong_beams),
        ("influence", stages, "mean_gradient", wrong_gradient),
    ],
)
def test_a_wrong_result_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, owner, name: str, wrong):
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(SystemExit, match="the two ways do not agree"):
        measure(tmp_path / "a.json", f"--stages={stage}")
    assert not any(row["equal"] for row in json.loads((tmp_path / "a.json").read_text())["rows"])


def test_a_gpu_is_compared_in_full_float32_and_timed_with_tf32(monkeypatch: pytest.MonkeyPatch):
    seen = {}

    def note(name: str) -> bool:
        seen[name] = torch.get_float32_matmul_precision()
        return True

    monkeypatch.setattr(speed, "with_peak_memory", lambda function, device: (function(), None))
    monkeypatch.setattr(speed, "seconds", lambda function, device: bool(function()) + 1.0)
    stage = Stage(lambda: note("reference"), note, lambda precision: note("equal"))
    for device, timed in (("cuda", "high"), ("cpu", "highest")):
        (row,) = speed.measure("any", stage, 1, torch.device(device), {})
        assert (row["stage"], row["precision"], row["equal"]) == ("any", "float32", True)
        assert seen == {"equal": "highest", "reference": timed, "float32": timed}
        assert torch.get_float32_matmul_precision() == "highest"


def test_wrong_flags(tmp_path: Path):
    with pytest.raises(InputError, match=r"--stages has nothing; there are train_step,eval_beam20"):
        measure(tmp_path / "a.json", "--stages=nothing,load")
    with pytest.raises(InputError, match=r"--device=tpu must be cpu or cuda"):
        measure(tmp_path / "a.json", "--device=tpu")
    names = ["train_step", "eval_beam20", "eval_beam50", "influence", "rqvae_epoch", "export", "load"]
    assert SpeedConfig().wanted == names
    assert SpeedConfig(device="cuda").wanted == [*names, "train_step_compiled"]


def test_flops_by_hand():
    """One layer each, one row of 3 tokens, two decoder calls of 1 and 2 tokens; multiply-adds count twice."""
    architecture = Architecture((2, 2), num_layers=1, num_decoder_layers=1, d_model=4, d_ff=5, num_heads=1, d_kv=3)
    recommender = build_recommender(architecture)
    encoder = 3 * (4 * 4 * 3 + 2 * 4 * 5) + 2 * 9 * 3
    decoder = 3 * (6 * 4 * 3 + 2 * 4 * 5) + 2 * 3 * (1 * 1 + 2 * 2) + 3 * 2 * 4 * 3 + 2 * 3 * 3 * 3
    vocabulary = 3 * 4 * architecture.vocab_size
    assert stages.forward_flops(recommender, torch.tensor([3]), [1, 2]) == 2 * (encoder + decoder + vocabulary)
