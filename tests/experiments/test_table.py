import csv
from dataclasses import replace

import numpy as np
import pytest

from data.batching import training_users
from data.interactions import load_interactions, split_positions, training_part
from evaluation.metrics import mean_metrics
from experiments.results import METRICS, pack_ranks, read_outcomes, write_outcome
from experiments.semantic_ids import kept_file
from experiments.study import Cell, Job, Study
from experiments.table import (
    Row,
    finished_rows,
    gains_by_seed,
    identifiers_table,
    popularity_table,
    trained_users_table,
    with_baseline,
    write_table,
)


@pytest.fixture
def study(tmp_path) -> Study:
    """A study with two variants and two seeds; MTGRec has two candidates, of which validation prefers the second."""
    needed = Job.of("tokenizer", dataset="Tiny")

    def job(name: str, seed: int, hits: int, valid: float) -> Job:
        made = Job.of("finetune", (needed,), dataset="Tiny", name=name, rand_seed=seed)
        ranks = np.where(np.arange(100) < hits, 0, 10)
        outcome = {"valid": {"ndcg@10": valid}, "test": mean_metrics(ranks, METRICS), "ranks": pack_ranks(ranks)}
        write_outcome(made, tmp_path, {**outcome, "seconds": 120.0, "best_epoch": seed})
        return made

    write_outcome(needed, tmp_path, {"seconds": 60.0})
    cells = [Cell("TIGER++", "", seed, (job("single", seed, hits, 0.5),)) for seed, hits in ((1, 20), (2, 30))]
    for seed, hits in ((1, 30), (2, 40)):
        cells.append(Cell("MTGRec", "", seed, (job("first", seed, 10, 0.4), job("second", seed, hits, 0.5))))
    cells.append(Cell("MTGRec", "", 3, (Job.of("finetune", dataset="Tiny"),)))  # not done
    return Study("seeds", "Who wins?", "TIGER++", tuple(cells))


def test_table_has_means_spreads_gains_and_time(study, tmp_path):
    text = write_table(study, "cpu", str(tmp_path))
    single, many = csv.DictReader((tmp_path / "tables" / "seeds-cpu.csv").read_text().splitlines())
    assert (single["variant"], single["recall@10"], single["recall@10 gain"]) == ("TIGER++", "0.2500 ± 0.0707", "")
    assert (many["recall@10"], many["seeds"], many["best epoch"]) == ("0.3500 ± 0.0707", "1 2", "1 2")
    assert many["recall@10 gain"].startswith("+40.0% (+")
    assert many["recall@10 gain by seed"] == "+50% +33% (+40% to +40%)"  # 10 more hits with both seeds, of 25
    assert (single["minutes a seed"], many["minutes a seed"]) == ("2", "4")  # (2 x 2 + 1) / 2, (4 x 2 + 1) / 2
    assert text == (tmp_path / "tables" / "seeds-cpu.md").read_text()


def test_gains_may_be_shown_over_further_baselines(study, tmp_path):
    text = write_table(replace(study, further_baselines=("MTGRec",)), "cpu", str(tmp_path))
    (line,) = text.split("Gains over MTGRec:\n\n")[1].split("\n\n")[0].splitlines()[2:]
    assert line.startswith("| TIGER++ | -28.6% (-")  # 25 hits instead of 35


def test_one_job_for_all_seeds_has_no_spread(study, tmp_path):
    job, ranks = Job.of("baseline", dataset="Tiny", method="popular"), np.where(np.arange(100) < 10, 0, 10)
    outcome = {"test": mean_metrics(ranks, METRICS), "ranks": pack_ranks(ranks), "seconds": 120.0}
    write_outcome(job, tmp_path, outcome)
    cells = [Cell("Most popular", "", seed, (job,)) for seed in (1, 2)]
    write_table(Study("seeds", "", "TIGER++", (*study.cells, *cells)), "cpu", str(tmp_path))
    *_, popular = csv.DictReader((tmp_path / "tables" / "seeds-cpu.csv").read_text().splitlines())
    assert (popular["seeds"], popular["recall@10"], popular["minutes a seed"]) == ("any", "0.1000", "2")
    assert popular["recall@10 gain by seed"].startswith("-50% -67% ")  # 10 hits, against 20 and 30


def test_gains_are_between_the_seeds_that_both_have(study, tmp_path):
    """A seed also draws the users trained on. Seed 1 alone: 30 hits against 20 of 100."""
    study = Study("seeds", "", "TIGER++", study.cells[:3])
    write_table(study, "cpu", str(tmp_path))
    single, many = csv.DictReader((tmp_path / "tables" / "seeds-cpu.csv").read_text().splitlines())
    assert (single["seeds"], single["recall@10"], many["seeds"]) == ("1 2", "0.2500 ± 0.0707", "1")
    assert many["recall@10 gain"].startswith("+50.0% (+")
    assert many["recall@10 gain by seed"] == ""
    row, base = (Row(name, [Cell(name, "", seed, ())], [[{}]]) for name, seed in (("MTGRec", 1), ("TIGER++", 2)))
    assert with_baseline(row, [row, base], study) is None


def test_interval_over_seeds_is_the_paired_t_tests():
    """Differences .1 and .2: mean .15, standard error .05, times 12.706 with one degree of freedom; baseline .25."""
    base, row = (
        Row("", [], [[{"test": {"recall@10": value}}] for value in values]) for values in ((0.2, 0.3), (0.3, 0.5))
    )
    assert gains_by_seed(row, base, "recall@10") == "+50% +67% (-194% to +314%)"


def test_the_fixed_tokenizer_is_the_first_candidate(study, tmp_path):
    fixed = write_table(study, "cpu", str(tmp_path)).split("fixed beforehand")[1].split("mean over")[0]
    assert "| MTGRec | 1 2 | 0.1000 ± 0.0000 |" in fixed


def test_the_mean_over_the_candidates_counts_each_of_them(study, tmp_path):
    """10 and 30 of 100 users are hit with seed 1, 10 and 40 with seed 2, against 20 and 30."""
    mean = write_table(study, "cpu", str(tmp_path)).split("mean over the candidates")[1]
    (line,) = [line for line in mean.splitlines() if line.startswith("| MTGRec | 1 2 | 0.2250 ± 0.0354 |")]
    assert "| +0% -17% (-137% to +117%) |" in line  # differences 0 and -.05, of .25
    assert "-10.0% (" in line
    assert "| 1/1 2/2 |" in line  # the best epochs


def test_identifiers_are_shown_with_what_their_collisions_cost(dataset, tmp_path):
    """Items 1 and 2 collide; their targets are missed, all others are first, so that the others alone have recall 1."""
    interactions = load_interactions(dataset)
    targets = interactions.items[split_positions(interactions.offsets, "test")]
    codes = np.column_stack([np.arange(20) // 2, np.arange(20) % 2, np.ones(20)]).astype(np.uint8)
    codes[1] = [0, 0, 2]
    data = {"dataset": dataset.name, "data_dir": str(dataset.parent)}
    tokenizer = Job.of("tokenizer", **data, kind="rqvae")
    pretraining = Job.of("pretrain", (tokenizer,), **data, sem_id_epochs=[2, 3])
    job = Job.of("finetune", (tokenizer, pretraining), **data, sem_id_epochs=[3])
    popular = Job.of("baseline", **data, method="popular")
    ranks = np.where(targets <= 2, 10, 0)
    for done in (job, popular):
        outcome = {"valid": None, "test": mean_metrics(ranks, METRICS), "ranks": pack_ranks(ranks), "seconds": 1.0}
        write_outcome(done, tmp_path, outcome)
    with open(kept_file(tokenizer, tmp_path), "wb") as file:
        np.savez(file, **{"2": codes + np.eye(1, 3, 0, dtype=np.uint8) * (np.arange(20) < 5)[:, None], "3": codes})
    cells = tuple(Cell(name, "", 1, (done,)) for name, done in (("Most popular", popular), ("rqvae", job)))
    both = (*cells, Cell("rqvae", "", 2, (popular,)))  # a seed without semantic IDs
    study = Study("kinds", "Which?", "", cells, identifiers=True)
    (line,) = identifiers_table(study, finished_rows(study, read_outcomes(study.jobs(), tmp_path)), str(tmp_path))
    recall = (targets > 2).mean()
    assert 0 < recall < 1
    assert list(line.values()) == ["rqvae", "10.0%", "10 2", "25.0%", "25.0%", "25.0%", f"{recall:.4f}", "1.0000"]
    assert "| rqvae | 10.0% | 10 2 |" in write_table(study, "cpu", str(tmp_path))
    study = replace(study, cells=both)
    assert identifiers_table(study, finished_rows(study, read_outcomes(study.jobs(), tmp_path)), str(tmp_path)) == []
    kept_file(tokenizer, tmp_path).unlink()  # of early studies none were kept
    assert identifiers_table(study, finished_rows(study, read_outcomes(study.jobs(), tmp_path)), str(tmp_path)) == []


def test_popularity_groups_cut_the_users(dataset, tmp_path):
    interactions = load_interactions(dataset)
    targets = interactions.items[split_positions(interactions.offsets, "test")]
    users = len(targets)
    data = {"dataset": dataset.name, "data_dir": str(dataset.parent)}
    cells = []
    for variant, ranks in (("TIGER", np.full(users, 10)), ("MTGRec", np.zeros(users, dtype=int))):
        job = Job.of("finetune", **data, variant=variant)
        outcome = {"test": mean_metrics(ranks, METRICS), "ranks": pack_ranks(ranks), "seconds": 1.0}
        write_outcome(job, tmp_path, outcome)
        cells.append(Cell(variant, "", 1, (job,)))
    counts = np.bincount(training_part(interactions).items, minlength=21)
    edge = int(np.median(counts[targets]))
    rare = int((counts[targets] < edge).sum())
    assert 0 < rare < users
    study = Study("longtail", "For whom?", "TIGER", tuple(cells), (edge,))
    single, many = popularity_table(study, finished_rows(study, read_outcomes(study.jobs(), tmp_path)))
    groups = [f"0-{edge - 1} ({rare} users)", f"{edge}+ ({users - rare} users)"]
    assert list(single) == ["variant", *groups]
    assert [single[group] for group in groups] == ["0.0000", "0.0000"]
    assert [many[group] for group in groups] == ["1.0000", "1.0000"]
    title = "Recall@10 by the target's interactions in the training part of all users"
    assert title in write_table(study, "cpu", str(tmp_path))


def test_users_trained_on_and_new_ones_are_told_apart(dataset, tmp_path):
    interactions = load_interactions(dataset)
    users = interactions.users_of(split_positions(interactions.offsets, "test"))
    cells = []
    for seed in (1, 2):
        seen = training_users(interactions.num_users, 0.5, seed)[users]
        assert 0 < seen.sum() < len(users)
        for variant, hits in (("TIGER++", np.arange(len(users)) % 2 == 0), ("MTGRec", seen)):
            settings = {"variant": variant, "rand_seed": seed, "train_user_ratio": 0.5}
            job = Job.of("finetune", dataset=dataset.name, data_dir=str(dataset.parent), **settings)
            ranks = np.where(hits, 0, 10)
            outcome = {"test": mean_metrics(ranks, METRICS), "ranks": pack_ranks(ranks), "seconds": 1.0}
            write_outcome(job, tmp_path, outcome)
            cells.append(Cell(variant, "", seed, (job,)))
    study = Study("seeds", "For whom?", "TIGER++", tuple(cells))
    single, many = trained_users_table(study, finished_rows(study, read_outcomes(study.jobs(), tmp_path)))
    assert (many["recall@10, trained on"], many["recall@10, new"]) == ("1.0000", "0.0000")
    assert many["ndcg@10, new, gain"].startswith("-100% -100%")
    halves = [training_users(interactions.num_users, 0.5, seed)[users] for seed in (1, 2)]
    expected = np.mean([(np.flatnonzero(seen) % 2 == 0).mean() for seen in halves])
    assert single["recall@10, trained on"] == f"{expected:.4f}"
    assert single["recall@10, trained on, gain"] == ""
    assert "those that are new to the model" in write_table(study, "cpu", str(tmp_path))


def test_no_users_are_told_apart_where_all_are_trained_on(study, tmp_path):
    assert trained_users_table(study, finished_rows(study, read_outcomes(study.jobs(), tmp_path))) == []
