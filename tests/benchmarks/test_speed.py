import json
from functools import partial
from pathlib import Path

import pytest
import torch

import model.packing
from benchmarks import speed, stages
from benchmarks.speed import TINY, SpeedConfig
from model.recommender import Architecture, build_recommender
from model.t5 import T5Recommender
from utils.errors import InputError

FIELDS = {
    *("stage", "precision", "reference", "project", "unit", "ratio", "ratio_min", "ratio_max", "fraction_of_matmul"),
    *("peak_memory_mb", "reference_peak_memory_mb", "equal", "rounds"),
}


def measure(output: Path, *flags: str) -> dict:
    speed.main(["--tiny", f"--output={output}", *flags])
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
    assert [(row["stage"], row["precision"], row["equal"]) for row in rows] == [
        ("train_step_compiled", "float32", True)
    ]
    assert model.packing.PACKING_DEVICES == ("cpu",)


def test_measurements_of_other_sizes_have_files_of_their_own():
    machine = {"processor": "Some CPU", "device": "cpu", "threads": 2}
    names = [
        speed.default_output(SpeedConfig(**flags), machine).name[10:]
        for flags in ({}, {"quick": True}, {"tiny": True}, {"dataset": "datasets/Shop"})
    ]
    assert names == [f"-some-cpu-2-threads{size}.json" for size in ("", "-quick", "-tiny", "-Shop")]


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
    monkeypatch.undo()
    measure(tmp_path / "a.json", "--stages=load")  # the row above, which the file keeps, is not this call's


@pytest.mark.parametrize("stage", [stages.train_step, stages.influence])
def test_tf32_is_in_the_rows_of_its_name_only_forward_and_backward(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage
):
    monkeypatch.setattr(stages.Workload, "precisions", ("float32", "tf32", "bf16"))  # as on a GPU
    stage = partial(stage, compiled=False) if stage is stages.train_step else stage
    measured = stage(stages.Workload(dataset, tmp_path, TINY, torch.device("cpu")))
    assert measured.precisions == ("float32", "tf32", "bf16")
    seen, linear = set(), torch.nn.functional.linear

    def note(*_: object) -> None:
        seen.add(torch.get_float32_matmul_precision())

    def watched(*arguments: torch.Tensor) -> torch.Tensor:
        note()
        out = linear(*arguments)
        if out.requires_grad:
            out.register_hook(note)
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    for precision, expected in (("tf32", {"high"}), ("float32", {"highest"}), ("bf16", {"highest"})):
        seen.clear()
        measured.project(precision)
        assert seen == expected
    seen.clear()
    measured.reference()
    assert seen == {"highest"}
    assert torch.get_float32_matmul_precision() == "highest"


def test_tf32_is_for_what_trains_the_recommender_on_a_gpu():
    at = {device: stages.Workload(Path(), Path(), TINY, torch.device(device)) for device in ("cpu", "cuda")}
    assert at["cpu"].precisions == ("float32", "bf16")
    assert at["cuda"].precisions == ("float32", "tf32", "bf16")
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
