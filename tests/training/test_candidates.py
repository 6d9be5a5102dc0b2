import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import fake_run

from data.interactions import load_interactions
from training import candidates
from training.candidates import (
    FineTuning,
    PlanConfig,
    newest_pretraining,
    plan,
    select,
    selection_table,
    tokenizers_back,
)
from utils.errors import InputError

STAGES = [60, 20, 20]
TOY, TWIN = "rqvae/toy_8,8,8,8", "rqvae/twin_8,8,8,8"


@pytest.fixture
def runs(dataset: Path, tmp_path: Path) -> Path:
    """Return the folder of the tiny dataset's runs; the dataset gets the tokenizers of epochs 1 to 15."""
    for epoch in range(4, 16):
        (dataset / "rqvae" / f"toy_8,8,8,8_{epoch}.sem_ids").write_text("{}")
    folder = tmp_path / "runs" / "Tiny"
    folder.mkdir(parents=True)
    return folder


def make_config(runs: Path, **settings: object) -> PlanConfig:
    return PlanConfig(
        **{"dataset": "Tiny", "data_dir": str(runs.parent.parent / "datasets"), "ckpt_dir": str(runs.parent)} | settings
    )


def pretraining(folder: Path, kept: tuple[int, ...] = (90, 100, 110, 120, 200), **config: object) -> Path:
    return fake_run(folder, {"best_epoch": 200}, kept, epoch_per_stage=STAGES, **config)


def test_a_row_gives_checkpoints_and_tokenizers_counted_back_from_the_last(runs):
    run = pretraining(runs / "pretrain_tau1")
    found = plan([90, 120], "5,6,9", make_config(runs))
    assert found == [
        FineTuning(f"{checkpoint}_{epoch}", str(run / "checkpoints" / f"epoch_{checkpoint}"), (TOY,), (epoch,))
        for checkpoint in (90, 120)
        for epoch in (6, 9, 10)
    ]


def test_of_kinds_with_different_epochs_only_tokenizers_that_exist_are_planned(runs):
    """Pre-training mixed the tokenizers 1 to 3 of one kind with 14 and 15 of another."""
    other = runs.parent.parent / "datasets" / "Tiny" / "other"
    other.mkdir()
    for epoch in (14, 15):
        (other / f"twin_8,8,8,8_{epoch}.sem_ids").write_text("{}")
    pretraining(runs / "pretrain_tau1", token_prefix=[f"{TOY}@1,2,3", "other/twin_8,8,8,8@14,15"], sem_id_epochs=None)
    twin = "other/twin_8,8,8,8"
    found = plan([90], "0,2", make_config(runs))  # of each kind the last and the third from there, if there is one
    assert [(*one.prefixes, *one.epochs) for one in found] == [(TOY, 1), (TOY, 3), (twin, 15)]
    found = plan([90], "0:9", make_config(runs, sem_id_epochs=[2, 14]))
    assert [(*one.prefixes, *one.epochs) for one in found] == [(TOY, 2), (twin, 14)]
    (together,) = plan([90], "0:1", make_config(runs, joint=True))
    assert (together.prefixes, together.epochs) == ((f"{TOY}@2,3", f"{twin}@14,15"), (None,))


def test_epochs_without_a_tokenizer_are_named(runs):
    pretraining(runs / "pretrain_tau1")
    with pytest.raises(InputError, match="has no tokenizers of the epochs 16, 17; there are 1, 10, 11, "):
        plan([90], "0", make_config(runs, sem_id_epochs="14:17"))
    pretraining(runs / "pretrain_tau2", sem_id_epochs=[14, 15, 16])
    with pytest.raises(InputError, match="has no tokenizers of the epochs 16; "):
        plan([90], "0", make_config(runs, pretrained=str(runs / "pretrain_tau2")))


def test_how_many_tokenizers_pre_training_had_is_not_asked_again(runs):
    pretraining(runs / "pretrain_tau1", sem_id_epochs=list(range(1, 16)))
    assert [c.epochs for c in plan([90], "9:11", make_config(runs, num_tokenizers=11))] == [(4,), (5,), (6,)]


def test_places_are_counted_from_the_tokenizers_of_pre_training(runs):
    pretraining(runs / "pretrain_tau1", sem_id_epochs=[3, 5, 7])
    found = plan([90], "0,2", make_config(runs))
    assert [c.epochs for c in found] == [(3,), (7,)]


def test_the_middle_tokenizers_are_those_nearest_to_all_others(dataset: Path, runs: Path, capsys):
    """Epoch by epoch one more item changes its third code; epoch 8, in the middle, differs in all items."""
    names = load_interactions(dataset).item_names[1:]
    for epoch in range(1, 16):
        codes = {name: [number % 8, number // 8, int(number < epoch), 1] for number, name in enumerate(names)}
        if epoch == 8:
            codes = {name: [number % 8, number // 8, 7, 1] for number, name in enumerate(names)}
        (dataset / "rqvae" / f"toy_8,8,8,8_{epoch}.sem_ids").write_text(json.dumps(codes))
    pretraining(runs / "pretrain_tau1")
    found = plan([90], "middle:3", make_config(runs, codebook_size=8))
    assert [c.epochs for c in found] == [(6,), (7,), (9,)]
    pretraining(runs / "pretrain_tau2", sem_id_epochs=[1, 2, 3])
    config = make_config(runs, codebook_size=8, pretrained=str(runs / "pretrain_tau2"))
    assert [c.name for c in plan([90], "middle:1", config)] == ["90_2"]
    assert [c.name for c in plan([90], "0/3", config)] == ["90_3"]
    assert [c.name for c in plan([90], "0/25", config)] == ["90_2"]  # the place is one of 25, not of 3
    assert "tokenizers in pre-training: 3, not 25; those in the middle are fine-tuned" in capsys.readouterr().err
    assert [c.name for c in plan([90], "0/25", replace(config, sem_id_epochs=[3]))] == ["90_3"]


@pytest.mark.parametrize("places", ["middle", "middle:x", "middle:0"])
def test_how_many_of_the_middle_must_be_said(runs, places):
    pretraining(runs / "pretrain_tau1")
    with pytest.raises(InputError, match=f"{places} names no tokenizers; write how many, such as middle:3"):
        plan([90], places, make_config(runs))


def test_the_middle_is_found_with_the_sizes_of_the_pre_trained_model(dataset: Path, runs: Path, recommender, tmp_path):
    """The flags of fine-tuning need not repeat them."""
    for epoch in range(4, 16):
        (dataset / "rqvae" / f"toy_8,8,8,8_{epoch}.sem_ids").unlink()
    run = pretraining(runs / "pretrain_tau1", n_codebooks=3, codebook_size=[8, 8, 8, 8])
    flags = {"codebook_size": 2}  # as little as the default 256 would be for a model with 512
    assert len(plan([90], "middle:1", make_config(runs, **flags))) == 1
    recommender.save_pretrained(tmp_path / "bare")
    assert len(plan([], "middle:1", make_config(runs, **flags, pretrained=str(tmp_path / "bare")))) == 1
    (run / "config.yaml").write_text("epoch_per_stage: [60, 20, 20]\n")
    with pytest.raises(InputError, match="check --codebook_size"):
        plan([90], "middle:1", make_config(runs, **flags))


def test_places_before_the_first_tokenizer_are_left_out_saying_so(capsys):
    assert tokenizers_back([4, 5, 6], [1, 2, 3, 4]) == [4, 5]
    assert "only 3 tokenizers are there: places [1, 2, 3, 4] back from the last are cut to [1, 2]" in (
        capsys.readouterr().err
    )
    assert tokenizers_back([4, 5, 6], [9]) == [4]
    assert "cut to the first" in capsys.readouterr().err
    assert tokenizers_back([4, 5, 6], [0, 1]) == [5, 6]
    assert capsys.readouterr().err == ""


def test_missing_checkpoints_fall_back_to_best_and_last_saying_so(runs, capsys):
    run = fake_run(runs / "p", {"best_epoch": 18}, (5, 10, 15, 20), epoch_per_stage=STAGES)
    found = plan([90, 100], "0", make_config(runs))
    assert [(c.name, Path(c.model)) for c in found] == [
        ("best_15", run / "model"),
        ("last_15", run / "checkpoints" / "epoch_20"),
    ]
    assert "kept none of the epochs 90, 100: its best epoch (18) and its last (20) are fine-tuned" in (
        capsys.readouterr().err
    )


def test_the_best_epoch_alone_where_no_epoch_is_wanted(runs, capsys):
    run = fake_run(runs / "p", {"best_epoch": 70}, (10, 100), epoch_per_stage=STAGES)
    (found,) = plan([], "0", make_config(runs))
    assert (found.name, found.model) == ("best_15", str(run / "model"))
    assert "the best epoch of pre-training (70) is fine-tuned" in capsys.readouterr().err


def test_some_missing_checkpoints_are_named(runs, capsys):
    pretraining(runs / "p", kept=(10, 100))
    assert [c.name for c in plan([90, 100], "0", make_config(runs))] == ["100_15"]
    assert "kept only 100 of the epochs 90, 100" in capsys.readouterr().err


@pytest.mark.parametrize(("kept", "best"), [((10, 20), 20), ((), 7)])
def test_best_alone_where_it_is_the_last_or_nothing_else_was_kept(runs, capsys, kept, best):
    fake_run(runs / "p", {"best_epoch": best}, kept, epoch_per_stage=STAGES)
    assert [c.name for c in plan([90], "0", make_config(runs))] == ["best_15"]
    assert f"its best epoch ({best}) is fine-tuned" in capsys.readouterr().err


def test_from_scratch(runs, capsys):
    found = plan([90, 100], "0,1", make_config(runs, pretrained="none"))
    assert found == [FineTuning("scratch_14", "", (TOY,), (14,)), FineTuning("scratch_15", "", (TOY,), (15,))]
    assert "training from scratch" in capsys.readouterr().err


def test_joint_is_one_run_for_each_checkpoint(runs):
    pretraining(runs / "p")
    found = plan([90, 100], "5,6,7", make_config(runs, joint=True))
    assert [(c.name, c.prefixes, c.epochs) for c in found] == [
        ("90_joint", (TOY,), (8, 9, 10)),
        ("100_joint", (TOY,), (8, 9, 10)),
    ]


def test_explicit_epochs_and_model_win(runs, tmp_path):
    pretraining(runs / "p", sem_id_epochs=[3, 5, 7])
    model = tmp_path / "elsewhere" / "weights.pth"
    model.parent.mkdir()
    model.write_text("")
    config = make_config(runs, sem_id_epochs="2:3", pretrained_model=str(model), pretrained=str(runs / "p"))
    assert plan([90], "0", config) == [
        FineTuning("weights_2", str(model), (TOY,), (2,)),
        FineTuning("weights_3", str(model), (TOY,), (3,)),
    ]


@pytest.fixture
def twins(dataset: Path) -> list[str]:
    """Return two more prefixes with the tokenizers of epochs 14 and 15, one of them in another folder."""
    (dataset / "other").mkdir()
    for epoch in (14, 15):
        (dataset / "other" / f"toy_8,8,8,8_{epoch}.sem_ids").write_text("{}")
        (dataset / "rqvae" / f"twin_8,8,8,8_{epoch}.sem_ids").write_text("{}")
    return [TWIN, "other/toy_8,8,8,8"]


def test_several_prefixes_are_tuned_one_by_one_or_jointly(runs, twins):
    config = make_config(runs, token_prefix=["twin_8,8,8,8", "other/toy_8,8,8,8"], pretrained="none")
    assert plan([90], "0,1", config) == [
        FineTuning(f"scratch_{number}_{epoch}", "", (prefix,), (epoch,))
        for number, prefix in enumerate(twins)
        for epoch in (14, 15)
    ]
    assert plan([90], "0,1", replace(config, joint=True)) == [FineTuning("scratch_joint", "", tuple(twins), (14, 15))]


def test_prefix_is_that_of_pre_training_unless_given(runs, twins):
    run = pretraining(runs / "p", kept=(90,), token_prefix=TWIN, sem_id_epochs=[14, 15])

    def prefixes(pretrained: Path | str, **settings: object) -> list[tuple[str, ...]]:
        config = make_config(runs, pretrained=str(pretrained), **settings)
        return [c.prefixes for c in plan([90], "0", config)]

    for pretrained in ("", run, run / "model", run / "checkpoints" / "epoch_90"):
        assert prefixes(pretrained) == [(TWIN,)]
    assert prefixes(run, token_prefix=TOY) == [(TOY,)]
    with pytest.raises(InputError, match=f"choose with --token_prefix: {TOY} {TWIN}"):
        prefixes("none")


def test_lines_are_what_the_script_reads():
    assert FineTuning("90_7", "m", (TOY,), (7,)).line() == f"90_7\t{TOY}\t[7]\tm"
    assert FineTuning("scratch_joint", "", (TOY, TWIN), (7, 8)).line() == f'scratch_joint\t["{TOY}","{TWIN}"]\t[7,8]\t'


def test_an_unfinished_run_is_nothing_to_start_from(runs):
    run = pretraining(runs / "p")
    (run / "results.json").unlink()
    with pytest.raises(InputError, match=r"p is an unfinished run; name one of its checkpoints, or finish it first"):
        plan([90], "0", make_config(runs, pretrained=str(run)))
    (found,) = plan([90], "0", make_config(runs, pretrained=str(run / "checkpoints" / "epoch_90")))
    assert (found.name, found.model) == ("epoch_90_15", str(run / "checkpoints" / "epoch_90"))


def test_newest_finished_pre_training(runs):
    for age, name in enumerate(["new", "old"]):
        os.utime(pretraining(runs / name) / "results.json", (1000 - age, 1000 - age))
    fake_run(runs / "fine_tuning")  # newer, but no pre-training
    (pretraining(runs / "unfinished") / "results.json").unlink()
    assert newest_pretraining(runs) == runs / "new"


def test_no_pre_training_says_what_to_do(runs):
    fake_run(runs / "fine_tuning")
    with pytest.raises(InputError, match=r"no finished pre-training; run pretrain.sh first, or set PRETRAINED="):
        newest_pretraining(runs)


def test_absent_model_or_tokenizers(runs, dataset):
    with pytest.raises(InputError, match="does not exist; PRETRAINED=none trains from scratch"):
        plan([90], "0", make_config(runs, pretrained=str(runs / "absent")))
    for file in (dataset / "rqvae").glob("*.sem_ids"):
        file.unlink()
    with pytest.raises(InputError, match="sem_ids"):
        plan([90], "0", make_config(runs, pretrained="none"))


@pytest.mark.parametrize("places", ["0", "middle:3"])
def test_a_tokenizer_without_a_number_is_the_only_one(runs, dataset, places):
    for file in (dataset / "rqvae").glob("toy*.sem_ids"):
        file.unlink()
    (dataset / "rqvae" / "toy_8,8,8,8.sem_ids").write_text("{}")
    (found,) = plan([90], places, make_config(runs, pretrained="none"))
    assert found == FineTuning("scratch_best", "", (f"{TOY}@best",), (None,))
    assert found.line() == f"scratch_best\t{TOY}@best\tnull\t"


@pytest.mark.parametrize("places", ["0", "middle:3"])
def test_the_best_checkpoint_is_not_taken_for_all_numbered_ones(runs, dataset, places):
    numbered = dataset / "rqvae" / "toy_8,8,8,8_1.sem_ids"
    numbered.with_name("toy_8,8,8,8.sem_ids").write_bytes(numbered.read_bytes())
    config = make_config(runs, pretrained="none", token_prefix=f"{TOY}@best")
    assert [c.line() for c in plan([], places, config)] == [f"scratch_best\t{TOY}@best\tnull\t"]
    pretraining(runs / "pretrain_tau1", token_prefix=[f"{TOY}@best"], sem_id_epochs=None)
    assert [c.prefixes for c in plan([90], places, make_config(runs))] == [(f"{TOY}@best",)]


def result(epoch: int, valid: float, test: float, prefix: str = "rqvae/toy") -> dict:
    return {"epoch": epoch, "prefix": prefix, "valid": {"ndcg@10": valid}, "test": {"ndcg@10": test}}


def make_fine_tunings(runs: Path) -> list[Path]:
    """Write three runs; the best by validation is the second tokenizer of the joint one, the worst by test."""
    rows = {"a": [result(7, 0.31, 0.9)], "b": [result(7, 0.2, 0.8), result(8, 0.4, 0.1)], "c": [result(9, 0.39, 0.7)]}
    return [
        fake_run(runs / name, {"best_epoch": 3, "per_tokenizer": per_tokenizer}, val_metric="ndcg@10")
        for name, per_tokenizer in rows.items()
    ]


def test_select_goes_by_validation_and_tells_no_losers_test(runs):
    selection = select(make_fine_tunings(runs))
    winner = {"run": str(runs / "b"), "best_epoch": 3, **result(8, 0.4, 0.1)}
    assert (selection["val_metric"], selection["winner"]) == ("ndcg@10", winner)
    assert [(Path(c["run"]).name, c["epoch"], c["valid"]["ndcg@10"]) for c in selection["candidates"]] == [
        ("a", 7, 0.31),
        ("b", 7, 0.2),
        ("b", 8, 0.4),
        ("c", 9, 0.39),
    ]
    assert not any("test" in candidate for candidate in selection["candidates"])
    table = selection_table(selection)
    assert [line for line in table.splitlines() if "<- winner" in line] == [
        "b            8      3     0.4000  <- winner",
    ]
    assert table.splitlines()[-1].split() == ["test", "of", "the", "winner:", "0.1000"]
    assert not any(number in table for number in ("0.9000", "0.8000", "0.7000"))


def test_one_winner_among_prefixes_with_the_same_epoch(runs):
    rows = [result(7, 0.3, 0.1, "rqvae/a"), result(7, 0.4, 0.2, "rqvae/b")]
    run = fake_run(runs / "joint", {"best_epoch": 1, "per_tokenizer": rows}, val_metric="ndcg@10")
    lines = selection_table(select([run])).splitlines()
    assert ["<- winner" in line for line in lines] == [False, False, False, True, False]


def test_command_prints_the_plan_and_writes_the_selection(runs, monkeypatch, capsys):
    pretraining(runs / "p")
    make_fine_tunings(runs)
    where = ["--dataset=Tiny", f"--data_dir={runs.parent.parent / 'datasets'}", f"--ckpt_dir={runs.parent}"]
    arguments = ["plan", "90,100", "0:1", "--pretrained=", "--joint=false", *where, "--lr", "0.01", "--overwrite"]
    monkeypatch.setattr(sys, "argv", ["candidates", *arguments])
    candidates.main()
    checkpoints = runs / "p" / "checkpoints"
    assert [line.split("\t") for line in capsys.readouterr().out.splitlines()] == [
        ["90_14", TOY, "[14]", f"{checkpoints / 'epoch_90'}"],
        ["90_15", TOY, "[15]", f"{checkpoints / 'epoch_90'}"],
        ["100_14", TOY, "[14]", f"{checkpoints / 'epoch_100'}"],
        ["100_15", TOY, "[15]", f"{checkpoints / 'epoch_100'}"],
    ]
    monkeypatch.setattr(sys, "argv", ["candidates", "select", "finetune", "a", "b", "c", *where])
    candidates.main()
    assert json.loads((runs / "finetune.winner.json").read_text())["winner"]["epoch"] == 8
    assert f"winner: {runs / 'b'}" in capsys.readouterr().out


def test_command_plans_from_the_best_epoch_and_outlines_a_dry_run(runs, monkeypatch, capsys):
    where = ["--dataset=Tiny", f"--data_dir={runs.parent.parent / 'datasets'}", f"--ckpt_dir={runs.parent}"]
    monkeypatch.setattr(sys, "argv", ["candidates", "plan", "best", "0", "--pretrained=", *where])
    monkeypatch.setenv("DRY_RUN", "1")
    candidates.main()
    assert capsys.readouterr().out == "best_TOKENIZER\tPREFIX\t[TOKENIZER]\tPRETRAINING/model\n"
    monkeypatch.setattr(sys, "argv", ["candidates", "plan", "90", "0", "--pretrained=", *where])
    candidates.main()
    assert capsys.readouterr().out == (
        "CHECKPOINT_TOKENIZER\tPREFIX\t[TOKENIZER]\tPRETRAINING/checkpoints/epoch_CHECKPOINT\n"
    )
    pretraining(runs / "p")
    monkeypatch.setattr(sys, "argv", ["candidates", "plan", "best", "0", "--pretrained=", *where])
    candidates.main()
    assert capsys.readouterr().out == f"best_15\t{TOY}\t[15]\t{runs / 'p' / 'model'}\n"


def test_a_plans_paths_are_whole_whatever_can_be_printed(runs, monkeypatch):
    where = ["--dataset=Tiny", f"--data_dir={runs.parent.parent / 'datasets'}", f"--ckpt_dir={runs.parent}"]
    monkeypatch.setattr(sys, "argv", ["candidates", "plan", "best", "0", "--pretrained=absent_中", *where])
    monkeypatch.setenv("DRY_RUN", "1")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    candidates.main()
    assert sys.stdout.buffer.getvalue().decode() == "best_TOKENIZER\tPREFIX\t[TOKENIZER]\tabsent_中/model\n"


def test_run_name_is_refused_where_the_script_makes_it(runs, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["candidates", "plan", "90", "0", "--run_name=mine"])
    with pytest.raises(InputError, match="set RUN_NAME=mine instead of --run_name"):
        candidates.main()


def test_usage(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["candidates", "choose"])
    with pytest.raises(InputError, match="usage: "):
        candidates.main()
