import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_dataset import make_dataset
from tiny_runs import MODEL, flags, read_results, read_weights, sizes_of_files

import evaluate
import finetune
from data.token_table import level_sizes
from evaluation.run import Run
from model.recommender import Architecture, build_recommender
from training.config import FinetuneConfig
from utils.runtime import run_command


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Return a dataset with two prefixes, and the folder of a pre-trained model."""
    folder = tmp_path_factory.mktemp("finetune")
    dataset = make_dataset(folder / "datasets" / "Tiny")
    for file in list((dataset / "rqvae").iterdir()):
        (dataset / "rqvae" / file.name.replace("toy", "twin")).write_bytes(file.read_bytes())
    torch.manual_seed(1)
    recommender = build_recommender(Architecture(level_sizes(3, 8), **MODEL))
    recommender.save_pretrained(folder / "pretrained" / "model")
    return SimpleNamespace(dataset=dataset, ckpt_dir=folder / "runs", pretrained=folder / "pretrained")


def fine_tune(world: SimpleNamespace, name: str | None, model: bool = False, **settings: object) -> Path:
    """Run fine-tuning for one epoch and return the run's folder."""
    values = {"token_prefix": "toy_8,8,8,8", "epochs": 1, "sem_id_epochs": 2} | settings
    if name is not None:
        values["run_name"] = name
    finetune.main(flags(world.dataset, world.ckpt_dir, model=model, **values))
    return world.ckpt_dir / "Tiny" / (name or "")


def error_of(world: SimpleNamespace, capsys: pytest.CaptureFixture, **settings: object) -> str:
    """Return the sentence of a run that has to exit with 2 and leave nothing."""
    before = set(world.ckpt_dir.rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: fine_tune(world, "wrong", **settings))
    assert exit_.value.code == 2
    assert set(world.ckpt_dir.rglob("*")) == before
    return capsys.readouterr().err


def test_architecture_and_weights_come_from_the_pre_trained_folder(world):
    """No architecture flags; at a learning rate of next to nothing the weights stay the pre-trained ones."""
    run = fine_tune(world, "tuned", pretrained_model=world.pretrained, lr=1e-12, warmup_steps=0)
    config = Run(run).settings
    assert {name: config[name] for name in MODEL} == MODEL
    assert config["codebook_size"] == [8, 8, 8, 8]
    before, after = read_weights(world.pretrained / "model"), read_weights(run / "model")
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=1e-6, atol=1e-6)
    results = read_results(run)
    assert [(row["epoch"], row["prefix"]) for row in results["per_tokenizer"]] == [(2, "rqvae/toy_8,8,8,8")]
    assert results["test"] == results["per_tokenizer"][0]["test"]
    assert results["best_epoch"] == 1
    assert not (run / "checkpoints").exists()  # save_interval is null: only the best
    assert f"weights from {world.pretrained}" in (run / "log.txt").read_text()


def test_the_best_checkpoint_beside_numbered_ones(world, tmp_path):
    numbered = world.dataset / "rqvae" / "twin_8,8,8,8_2.sem_ids"
    best = numbered.with_name("twin_8,8,8,8.sem_ids")
    best.write_bytes(numbered.read_bytes())
    run = fine_tune(world, "best", model=True, token_prefix="twin_8,8,8,8@best", sem_id_epochs="null")
    settings = Run(run).settings
    assert (settings["token_prefix"], settings["sem_id_epochs"]) == ("rqvae/twin_8,8,8,8@best", None)
    assert [row["epoch"] for row in read_results(run)["per_tokenizer"]] == [None]
    assert json.loads((run / "model" / "mtgrec.json").read_text())["tokenizer"]["epoch"] is None
    evaluate.main([f"--model={run}", "--num_beams=10", f"--output={tmp_path}"])
    (row,) = json.loads((tmp_path / "evaluation.json").read_text())
    assert (row["prefix"], row["epoch"]) == ("rqvae/twin_8,8,8,8", None)
    best.unlink()


def test_a_flag_against_the_model_is_an_error(world, capsys):
    error = error_of(world, capsys, pretrained_model=world.pretrained, d_model=32, num_layers=1)
    assert error == (
        f"error: flags contradict the pre-trained model {world.pretrained}: d_model=32 (the model has 16); "
        "leave them out\n"
    )


def test_a_model_that_does_not_exist_is_an_error(world, capsys):
    error = error_of(world, capsys, pretrained_model=world.pretrained / "XXXX")
    assert error.endswith("XXXX does not exist; leave the flag out to train from scratch\n")


def test_from_scratch_says_so(world, capsys):
    run = fine_tune(world, "scratch", model=True)
    assert "weights from scratch" in capsys.readouterr().out
    assert Run(run).settings["pretrained_model"] == ""


def test_joint_fine_tuning_with_several_tokenizers(world):
    run = fine_tune(world, "joint", pretrained_model=world.pretrained, sem_id_epochs="1:3")
    results = read_results(run)
    assert [row["epoch"] for row in results["per_tokenizer"]] == [1, 2, 3]
    for name, value in results["valid"].items():
        assert value == pytest.approx(sum(row["valid"][name] for row in results["per_tokenizer"]) / 3)
    files = sorted(path.name for path in run.glob("test_results_*.json"))
    assert files == ["test_results_1.json", "test_results_2.json", "test_results_3.json"]


def test_several_prefixes_have_result_files_of_their_own(world):
    prefixes = '["toy_8,8,8,8","twin_8,8,8,8"]'
    run = fine_tune(world, "both", pretrained_model=world.pretrained, token_prefix=prefixes, sem_id_epochs=[1, 3])
    rows = read_results(run)["per_tokenizer"]
    assert [(row["prefix"], row["epoch"]) for row in rows] == [
        (f"rqvae/{name}_8,8,8,8", epoch) for name in ("toy", "twin") for epoch in (1, 3)
    ]
    files = {path.name: json.loads(path.read_text()) for path in run.glob("test_results_*.json")}
    assert files.keys() == {f"test_results_{prefix}_{epoch}.json" for prefix in (0, 1) for epoch in (1, 3)}
    assert files["test_results_0_3.json"] == files["test_results_1_3.json"]  # the twins' semantic IDs are the same


def test_constrained_generation_recommends_items_only(world):
    run = fine_tune(world, "constrained", pretrained_model=world.pretrained, constrained="true")
    items = [item for row in json.loads((run / "test_results_2.json").read_text())["pred_ids"] for item in row]
    assert len(items) == 280
    assert None not in items


def test_reference_checkpoint_is_fine_tuned(golden, tmp_path):
    sizes = sizes_of_files(golden.dataset)
    settings = {"n_codebooks": len(sizes) - 1, "codebook_size": sizes, "num_tokenizers": 1, "epochs": 1}
    argv = flags(golden.dataset, tmp_path, model=False, run_name="golden", **settings)
    argv.append(f"--pretrained_model={golden.folder / 'reference_checkpoint.pth'}")
    finetune.main(argv)
    run = tmp_path / golden.dataset.name / "golden"
    assert read_results(run)["num_users"] == len(json.loads((golden.folder / "splits.json").read_text())["test"])
    assert Run(run).settings["d_model"] == golden.weights()["t5.shared.weight"].shape[1]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"sem_id_epochs": [7]}, "scratch_7_seed2024"),
        ({"sem_id_epochs": [7, 8, 9], "rand_seed": 5}, "scratch_7-9_seed5"),
        ({}, "scratch_best_seed2024"),
        ({"sem_id_epochs": [7], "pretrained_model": "ckpt/T/pretrain_tau3"}, "finetune_pretrain_tau3_7"),
        (
            {"sem_id_epochs": [7], "pretrained_model": "ckpt/T/pretrain_tau3/checkpoints/epoch_90"},
            "finetune_pretrain_tau3_epoch_90_7",
        ),
        ({"sem_id_epochs": [7], "pretrained_model": "ckpt/T/pretrain_tau3/model"}, "finetune_pretrain_tau3_7"),
    ],
)
def test_default_run_name_says_whence_and_which_tokenizer(settings, name):
    assert finetune.default_run_name(FinetuneConfig(**settings)) == name


def test_default_run_name_of_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pre" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "pre")
    for path in (".", "model", "./model/"):
        assert finetune.default_run_name(FinetuneConfig(pretrained_model=path)) == "finetune_pre_best"


def test_items_without_texts_are_refused_before_training(world, capsys):
    file = world.dataset / "metadata.sentence.json"
    texts = file.read_text()
    file.write_text(json.dumps({**json.loads(texts), "item3": " "}))
    assert "1 of 20 items have no text, the first is 'item3'" in error_of(world, capsys, model=True)
    file.write_text(texts)


@pytest.mark.parametrize(("warmup_steps", "said"), [(9, False), (10, True)])
def test_a_warm_up_of_most_of_the_run_is_named(world, capsys, warmup_steps, said):
    """Two epochs of nine batches."""
    run = fine_tune(
        world, "warm", model=True, epochs=2, warmup_steps=warmup_steps, overwrite="true", train_batch_size=40
    )
    warning = (
        "warning: the learning rate rises for --warmup_steps=10 of the run's 18 batches; three epochs' would be 27\n"
    )
    assert (warning in (run / "log.txt").read_text()) is said
