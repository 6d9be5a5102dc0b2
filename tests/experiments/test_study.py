from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_runs import ROOT

from baselines.config import BaselineConfig
from experiments.run import commands
from experiments.study import Job, Study, load_study
from tokenizer.config import TokenizerConfig
from tokenizer.neighbours import neighbour_codes
from utils.config import parse_config
from utils.errors import InputError

BUDGET = {
    "dataset": "Tiny",
    "data_dir": "datasets",
    "seeds": [1, 2],
    "tokenizer": {"sent_emb_model": "tfidf", "epochs": 20, "save_last": 10},
    "recommender": {"d_model": 16},
    "pretrain": {"tau": 3.0},
    "finetune": {"lr": 0.1},
    "scratch": {"lr": 0.2},
    "num_tokenizers": 3,
    "gap": 2,
    "candidates": 2,
}


def make_study(folder: Path, budget: dict | None = None, **content: object) -> Study:
    """Write a study and its budget into a folder and read them back."""
    (folder / "budgets.yaml").write_text(yaml.safe_dump({"cpu": {**BUDGET, **(budget or {})}}))
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return load_study(folder / "study.yaml", "cpu")


def test_a_cell_fine_tunes_the_last_tokenizers_of_its_pretraining(tmp_path):
    study = make_study(tmp_path, variants={"MTGRec": {}})
    assert [cell.seed for cell in study.cells] == [1, 2]
    first, second = study.cells[0].candidates
    assert (first.flags["sem_id_epochs"], second.flags["sem_id_epochs"]) == ([20], [18])
    assert (first.flags["lr"], first.flags["d_model"], first.flags["rand_seed"]) == (0.1, 16, 1)
    tokenizer, pretraining = first.needs
    assert tokenizer.flags == {**BUDGET["tokenizer"], "dataset": "Tiny", "data_dir": "datasets", "rand_seed": 1}
    assert (pretraining.flags["sem_id_epochs"], pretraining.flags["tau"]) == ([16, 18, 20], 3.0)
    training = ["tokenizer", "pretrain", "finetune", "finetune"]
    assert [job.kind for job in study.jobs()] == ["embed", *training, *training]
    assert tokenizer.needs[0].flags == {"dataset": "Tiny", "data_dir": "datasets", "sent_emb_model": "tfidf"}


def test_the_candidate_may_be_the_middle_one_and_counting_may_begin_earlier(tmp_path):
    study = make_study(
        tmp_path, variants={"middle": {"candidates": "middle"}, "one": {"last": 14, "num_tokenizers": 1}}
    )
    middle, one = (study.cells[index].candidates for index in (0, 2))
    assert [job.flags["sem_id_epochs"] for job in middle] == [[18]]
    assert [job.flags["sem_id_epochs"] for job in one] == [[14]]
    assert one[0].needs[1].flags["sem_id_epochs"] == [14]


def test_from_scratch_has_its_own_flags_and_no_pretraining(tmp_path):
    study = make_study(tmp_path, variants={"TIGER++": {"pretrain": None}})
    (job, _) = study.cells[0].candidates
    assert job.flags["lr"] == 0.2
    assert [need.kind for need in job.needs] == ["tokenizer"]


def test_independent_tokenizers_differ_by_seed_and_the_own_one_comes_first(tmp_path):
    study = make_study(tmp_path, variants={"other seeds": {"independent": True}})
    first, second = study.cells[1].candidates
    pretraining = first.needs[1]
    assert [need.flags["rand_seed"] for need in pretraining.needs] == [2, 1, 3]
    assert pretraining.flags["sem_id_epochs"] == [20]
    assert [job.needs[0].flags["rand_seed"] for job in (first, second)] == [2, 1]


@pytest.mark.parametrize(("count", "middle", "epoch"), [(4, 3, 16), (5, 3, 16), (25, 13, 8)])
def test_the_middle_neighbour_is_the_given_tokenizer(tmp_path, count, middle, epoch):
    budget = {"tokenizer": {"sent_emb_model": "tfidf", "epochs": 20, "save_last": 20}, "gap": 2 if count < 9 else 1}
    changes = {"neighbours": 0.25, "candidates": "middle", "num_tokenizers": count}
    (job,) = make_study(tmp_path, budget, variants={"near": changes}).cells[0].candidates
    related = job.needs[0]
    assert (job.flags["sem_id_epochs"], related.flags["sem_id_epochs"]) == ([middle], [epoch])
    codes = np.zeros((3, 2), dtype=np.int64)
    drawn = neighbour_codes(torch.eye(3), [torch.eye(3)] * 2, codes, count, 0.3, 1)
    assert (drawn[middle - 1] == codes).all()  # numbers count from 1


def test_neighbours_are_made_of_the_middle_epoch_which_is_their_middle_one(tmp_path):
    study = make_study(tmp_path, variants={"near": {"neighbours": 0.25, "candidates": "middle"}})
    (job,) = study.cells[0].candidates
    related, pretraining = job.needs
    assert (job.flags["sem_id_epochs"], pretraining.flags["sem_id_epochs"]) == ([2], [1, 2, 3])
    assert (*pretraining.needs, related.flags["drift"], related.flags["epochs"]) == (related, 0.25, 3)
    _, own = related.needs
    assert (own.flags["epochs"], related.flags["sem_id_epochs"]) == (20, [18])
    (train, export) = commands(related, "ckpt")
    (flag,) = (each for each in train if each.startswith("--sem_ids="))
    assert flag == f"--sem_ids=datasets/Tiny/{own.id}/tfidf_256,256,256,256_18.sem_ids"
    config, _ = parse_config(TokenizerConfig, train[3:], "", "")
    assert config.problems() == []
    assert (config.kind, config.rand_seed) == ("neighbours", 1)
    assert export[3:] == train[3:]


def test_a_tokenizers_own_seed_stays_the_same_for_every_seed_of_the_recommender(tmp_path):
    study = make_study(tmp_path, variants={"one tokenizer": {"tokenizer": {"rand_seed": 7}}})
    pairs = [
        (cell.candidates[0].needs[0].flags["rand_seed"], cell.candidates[0].flags["rand_seed"]) for cell in study.cells
    ]
    assert pairs == [(7, 1), (7, 2)]


def test_studies_share_jobs_and_other_flags_make_other_jobs(tmp_path):
    one = make_study(tmp_path, variants={"MTGRec": {}, "sharp": {"pretrain": {"tau": 0.1}}})
    other = make_study(tmp_path, variants={"anything": {}})
    ids = {job.id for job in one.jobs()}
    assert {job.id for job in other.jobs()} < ids
    assert len(ids) == 1 + 2 + 2 * 2 + 2 * 4


def test_a_job_is_the_same_wherever_the_data_lies():
    assert Job.of("embed", dataset="Tiny", data_dir="a").id == Job.of("embed", dataset="Tiny", data_dir="b").id
    assert Job.of("embed", dataset="Tiny").id != Job.of("embed", dataset="Other").id


def test_jobs_come_seed_after_seed_so_that_a_study_that_is_cut_off_has_whole_seeds(tmp_path):
    study = make_study(tmp_path, baseline="A", variants={"A": {"pretrain": None}, "B": {}})
    assert [cell.seed for cell in study.cells] == [1, 2, 1, 2]
    seeds = [job.flags["rand_seed"] for job in study.jobs() if job.kind != "embed"]
    assert set(seeds) == {1, 2}
    assert seeds == sorted(seeds)


def test_settings_cross_with_variants(tmp_path):
    study = make_study(
        tmp_path,
        variants={"MTGRec": {}, "popular": {"method": "popular"}},
        settings={"narrow": {}, "wide": {"recommender": {"d_model": 32}}},
        cpu={"seeds": [1]},
    )
    assert [cell.row for cell in study.cells] == ["MTGRec, narrow", "MTGRec, wide"]
    assert [cell.candidates[0].flags["d_model"] for cell in study.cells] == [16, 32]


def test_a_section_that_a_variant_takes_away_is_not_brought_back_by_a_setting(tmp_path):
    study = make_study(
        tmp_path,
        variants={"MTGRec": {}, "TIGER++": {"pretrain": None}},
        settings={"tau 1": {"pretrain": {"tau": 1.0}}},
        cpu={"seeds": [1]},
    )
    kinds = {cell.row: {job.kind for job in cell.candidates[0].with_needs()} for cell in study.cells}
    assert kinds["MTGRec, tau 1"] == {"embed", "tokenizer", "pretrain", "finetune"}
    assert kinds["TIGER++, tau 1"] == {"embed", "tokenizer", "finetune"}


def test_unknown_keys_are_named(tmp_path):
    with pytest.raises(InputError, match="unknown pretraining; a variant may change dataset"):
        make_study(tmp_path, variants={"MTGRec": {"pretraining": {}}})
    with pytest.raises(InputError, match="has no budget tpu; it has cpu"):
        load_study(tmp_path / "study.yaml", "tpu")


def test_commands_name_runs_and_files_by_job(tmp_path):
    study = make_study(tmp_path, variants={"MTGRec": {}})
    embedding, tokenizer, pretraining, finetuning = study.jobs()[:4]
    assert [command[2] for command in commands(embedding, "ckpt")] == ["tokenizer.embed"]
    assert [command[2] for command in commands(tokenizer, "ckpt")] == [f"tokenizer.{s}" for s in ("train", "export")]
    assert f"--ckpt_name={tokenizer.id}" in commands(tokenizer, "ckpt")[0]
    (command,) = commands(finetuning, "ckpt")
    assert command[2] == "finetune"
    assert f"--run_name={finetuning.id}" in command
    assert f"--pretrained_model=ckpt/Tiny/{pretraining.id}" in command
    assert f"--token_prefix={tokenizer.id}/tfidf_256,256,256,256" in command
    assert "--sem_id_epochs=[20]" in command
    other = Job.of("tokenizer", **tokenizer.flags, lr=1)
    (command,) = commands(Job.of("pretrain", (tokenizer, other), dataset="Tiny", patience=None), "ckpt")
    prefixes = f'["{tokenizer.id}/tfidf_256,256,256,256","{other.id}/tfidf_256,256,256,256"]'
    assert {f"--token_prefix={prefixes}", "--patience=null"} <= set(command)
    assert commands(Job.of("ensemble", (finetuning,)), "ckpt") == []


def test_baselines_learn_from_the_users_that_the_recommender_is_trained_on(tmp_path):
    recommender = {"train_user_ratio": 0.25, "val_users": "new", "val_ratio": 0.5}
    variants = {"popular": {"method": "popular"}, "SASRec": {"method": "sasrec", "flags": {"lr": 0.1}}}
    study = make_study(tmp_path, variants=variants, cpu={"recommender": recommender})
    first, popular, second = study.jobs()
    data = {"dataset": "Tiny", "data_dir": "datasets"}
    assert popular.flags == {**data, "method": "popular"}  # one for all seeds
    shared = {**data, "train_user_ratio": 0.25, "val_users": "new", "method": "sasrec", "lr": 0.1}
    assert [job.flags for job in (first, second)] == [{**shared, "rand_seed": seed} for seed in (1, 2)]
    assert make_study(tmp_path, variants=variants).jobs()[0].flags["rand_seed"] == 1  # its weights are drawn
    (command,) = commands(first, "ckpt")
    assert command[2] == "baseline"
    assert {f"--run_name={first.id}", "--ckpt_dir=ckpt", "--method=sasrec", "--resume"} <= set(command)
    parse_config(BaselineConfig, command[3:], "", "")


@pytest.mark.parametrize(("ratio", "seeds"), [(1.0, [None]), (0.25, [1, 2])])
def test_neighbours_are_counted_once_for_all_seeds_unless_these_draw_the_users(tmp_path, ratio, seeds):
    variants = {"Item neighbours": {"method": "itemknn"}}
    study = make_study(tmp_path, variants=variants, cpu={"recommender": {"train_user_ratio": ratio}})
    assert [job.flags.get("rand_seed") for job in study.jobs()] == seeds
    config = BaselineConfig(method="itemknn", train_user_ratio=ratio, rand_seed=1)
    assert config.run_folder.name == ("itemknn" if seeds == [None] else "itemknn_seed1")


def test_an_ensemble_joins_several_candidates(tmp_path):
    variants = {"MTGRec, ensemble": {"ensemble": True, "candidates": "middle:3"}}
    ((job,), _) = (cell.candidates for cell in make_study(tmp_path, variants=variants).cells)
    assert [need.flags["sem_id_epochs"] for need in job.needs] == [[18], [20], [16]]  # the middle one first
    with pytest.raises(InputError, match="an ensemble of one candidate joins nothing"):
        make_study(tmp_path, variants={"MTGRec, ensemble": {"ensemble": True, "candidates": "middle"}})


def test_a_study_is_refused_where_it_says_nothing(tmp_path):
    with pytest.raises(InputError, match="with --budget=cpu MTGRec and tau 3 are the same trainings"):
        make_study(tmp_path, variants={"MTGRec": {}, "tau 3": {"pretrain": {"tau": 3.0}}})
    with pytest.raises(InputError, match=r"study\.yaml says nothing with --budget=cpu; it is for gpu, tpu"):
        make_study(tmp_path, variants={"MTGRec": {}}, budgets=["gpu", "tpu"])


@pytest.mark.parametrize("budget", yaml.safe_load((ROOT / "experiments/budgets.yaml").read_text()))
@pytest.mark.parametrize(
    "file",
    sorted(set((ROOT / "experiments").glob("*.yaml")) - {ROOT / "experiments/budgets.yaml"}),
    ids=lambda file: file.stem,
)
def test_every_study_reads(file: Path, budget: str):
    if budget not in yaml.safe_load(file.read_text()).get("budgets", [budget]):
        with pytest.raises(InputError, match=f"says nothing with --budget={budget}"):
            load_study(file, budget)
        return
    study = load_study(file, budget)
    assert study.title
    variants = {cell.variant for cell in study.cells}
    assert {*study.further_baselines, *filter(None, [study.baseline])} <= variants
    assert len({(cell.row, cell.seed) for cell in study.cells}) == len(study.cells)
