"""The table of a study: mean and spread over seeds, gains over the baseline, and what users say to them."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.batching import training_users
from data.distances import distances
from data.interactions import (
    Interactions,
    dataset_folder,
    item_counts,
    load_interactions,
    split_positions,
    training_part,
)
from evaluation.compare import Interval, bootstrap_over_users, t_interval_over_seeds
from evaluation.metrics import mean_metrics, per_user
from evaluation.results import user_bins
from experiments.results import METRICS, read_outcomes, unpack_ranks
from experiments.semantic_ids import kept_codes
from experiments.study import Cell, Job, Study
from tokenizer.quality import collision_groups
from utils.files import atomic_path, write_text

VALID_METRIC = "ndcg@10"
GAINS = ("recall@10", "ndcg@10")  # the metrics whose gain over the baseline is shown
COUNTING = {"first": "one tokenizer, fixed beforehand", "all": "the mean over the candidates"}
Outcomes = dict[str, dict[str, Any]]  # of every finished job, by its id
Line = dict[str, str]  # column: text


@dataclass
class Row:
    """A row of the table: one variant in one setting, over the seeds that are done."""

    name: str
    cells: list[Cell]  # one for each seed
    outcomes: list[list[dict]]  # of each seed, those of its candidates that count, by their mean

    def of(self, seeds: set[int]) -> "Row":
        """Return the row with some of its seeds only, in rising order."""
        by_seed = {cell.seed: (cell, outcome) for cell, outcome in zip(self.cells, self.outcomes, strict=True)}
        cells, outcomes = zip(*(by_seed[seed] for seed in sorted(seeds)), strict=True)
        return Row(self.name, list(cells), list(outcomes))

    def test(self, metric: str) -> np.ndarray:
        """Return a test metric for each seed, float64 [S]."""
        return np.asarray([np.mean([outcome["test"][metric] for outcome in each]) for each in self.outcomes])

    def among(self, members: list[np.ndarray]) -> "Row":
        """Return the row with the test metrics of some users alone; `members` has each seed's, bool [U]."""
        tests = [
            [{"test": mean_metrics(unpack_ranks(outcome["ranks"])[mask], METRICS)} for outcome in each]
            for each, mask in zip(self.outcomes, members, strict=True)
        ]
        return Row(self.name, self.cells, tests)

    def per_user(self, metric: str) -> np.ndarray:
        """Return each test user's metric, the mean over the seeds, float64 [U]."""
        users = [[per_user(metric, unpack_ranks(outcome["ranks"])) for outcome in each] for each in self.outcomes]
        return np.mean([np.mean(each, axis=0) for each in users], axis=0)


def finished_rows(study: Study, outcomes: Outcomes, counting: str = "best") -> list[Row]:
    """Return the study's rows with the seeds whose jobs are all done.

    `counting` says which of a cell's candidates count: "best", the one that is best on validation, "first", the one
    fixed beforehand, or "all", by their mean.
    """
    rows: dict[str, Row] = {}
    for cell in study.cells:
        found = [outcomes.get(job.id) for job in (cell.candidates[:1] if counting == "first" else cell.candidates)]
        if None in found:
            continue
        row = rows.setdefault(cell.row, Row(cell.row, [], []))
        row.cells.append(cell)
        if counting == "best" and len(found) > 1:  # what stands alone may have no validation
            found = [max(found, key=lambda outcome: outcome["valid"][VALID_METRIC])]
        row.outcomes.append(found)
    return list(rows.values())


def with_baseline(row: Row, rows: list[Row], study: Study) -> tuple[Row, Row] | None:
    """Return a row and the baseline's, in the same setting or its only one, with the seeds that both have.

    None for the baseline itself, and where there is nothing to compare: a seed also draws the users trained on.
    """
    own = [other for other in rows if other.cells[0].variant == study.baseline]
    same = [other for other in own if other.cells[0].setting == row.cells[0].setting]
    base = (same or (own if len(own) == 1 else []) or [None])[0]
    if base is None or row.cells[0].variant == study.baseline:
        return None
    shared = {cell.seed for cell in row.cells} & {cell.seed for cell in base.cells}
    return (row.of(shared), base.of(shared)) if shared else None


def gain_text(row: Row, base: Row, metric: str) -> str:
    """Return the gain over the baseline and its 95% interval, relative to the baseline's mean; "" where that is 0."""
    reference = base.test(metric).mean()
    if reference == 0:
        return ""
    # five times the default, with which the published tables were made
    interval = bootstrap_over_users(row.per_user(metric) - base.per_user(metric), 10_000)
    return f"{row.test(metric).mean() / reference - 1:+.1%} {_relative(interval, reference, 1)}"


def gains_by_seed(row: Row, base: Row, metric: str) -> str:
    """Return each seed's gain over the baseline, and the 95% interval that they make (paired t-test over seeds).

    It says what other seeds would change, which the interval over users does not; relative to the baseline's mean.
    "" for one seed, which has no interval.
    """
    ours, theirs = row.test(metric), base.test(metric)
    if len(ours) == 1:
        return ""
    each = " ".join(f"{one / other - 1:+.0%}" if other else "-" for one, other in zip(ours, theirs, strict=True))
    return f"{each} {_relative(t_interval_over_seeds(ours - theirs), theirs.mean(), 0)}" if theirs.all() else each


def _relative(interval: Interval, reference: float, digits: int) -> str:
    low, high = (f"{value / reference:+.{digits}%}" for value in (interval.low, interval.high))
    return f"({low} to {high})"


def table(study: Study, rows: list[Row], outcomes: Outcomes) -> list[Line]:
    lines = []
    for row in rows:
        trainings = len({each[0]["id"] for each in row.outcomes})  # one for all seeds, where none is used
        seeds = [str(cell.seed) for cell in row.cells]
        line = {"variant": row.name, "seeds": " ".join(seeds) if trainings == len(seeds) else "any"}
        for metric in METRICS:
            values = row.test(metric)
            spread = f" ± {values.std(ddof=1):.4f}" if trainings > 1 else ""
            line[metric] = f"{values.mean():.4f}{spread}"
        pair = with_baseline(row, rows, study)
        for metric in GAINS:
            line[f"{metric} gain"] = gain_text(*pair, metric) if pair else ""
            line[f"{metric} gain by seed"] = gains_by_seed(*pair, metric) if pair else ""
        jobs = [need for cell in row.cells for job in cell.candidates for need in job.with_needs()]
        seconds = sum(outcomes[name]["seconds"] for name in dict.fromkeys(job.id for job in jobs) if name in outcomes)
        epochs = [[str(outcome.get("best_epoch", "")) for outcome in each] for each in row.outcomes]
        line["best epoch"] = " ".join("/".join(each) for each in epochs)
        line["minutes a seed"] = f"{seconds / 60 / trainings:.0f}"
        lines.append(line)
    return lines


def popularity_table(study: Study, rows: list[Row]) -> list[Line]:
    """Return each row's recall@10 and its gain over the baseline by how popular the target is (Figure 5)."""
    interactions = _interactions(study)
    counts = item_counts(training_part(interactions))
    targets = interactions.items[split_positions(interactions.offsets, "test")]
    groups = user_bins(counts[targets], list(study.popularity_edges))
    lines = []
    for row in rows:
        pair = with_baseline(row, rows, study)
        line = {"variant": row.name}
        for name, members in groups.items():
            paired = [side.per_user("recall@10")[members].mean() for side in pair] if pair else [0, 0]
            gain = f" ({paired[0] / paired[1] - 1:+.1%})" if paired[1] else ""
            line[f"{name} ({members.sum():,} users)"] = f"{row.per_user('recall@10')[members].mean():.4f}{gain}"
        lines.append(line)
    return lines


def identifiers_table(study: Study, rows: list[Row], results_dir: str) -> list[Line]:
    """Return each row's collisions, codes in use and distances, and recall@10 for all targets and those alone.

    A target alone shares its codes with no other item. Distances are those of the tokenizers of pre-training. Rows
    without a tokenizer are left out, and those whose semantic IDs were not kept for each seed.
    """
    interactions, lines = _interactions(study), []
    targets = interactions.items[split_positions(interactions.offsets, "test")]
    for row in rows:
        members, collisions, used, apart = [], [], [], []
        for cell, (outcome,) in zip(row.cells, row.outcomes, strict=True):
            job = next(job for job in cell.candidates if job.id == outcome["id"])
            apart += [shares for need in job.needs if (shares := _distances(need, results_dir))]
            for tokenizer in [need for need in job.needs if need.kind == "tokenizer"]:
                codes = kept_codes(tokenizer, results_dir).get(job.flags["sem_id_epochs"][0])
                if codes is None:
                    continue
                codes = codes[:, :-1]
                group, sizes = collision_groups(codes)
                members.append(sizes[group][targets - 1] == 1)
                collisions.append((sizes[group] > 1).mean())
                used.append([len(np.unique(level)) for level in codes.T])
        if len(members) == len(row.cells):
            alone = row.among(members).test("recall@10").mean()
            lines.append({"variant": row.name, "items that collide": f"{np.mean(collisions):.1%}"})
            lines[-1]["codes in use"] = " ".join(f"{count:.0f}" for count in np.mean(used, axis=0))
            neighbours, ends, first = (f"{share:.1%}" for share in np.mean(apart, axis=0)) if apart else ("", "", "")
            lines[-1] |= {"neighbours differ": neighbours, "ends differ": ends, "first token, ends": first}
            lines[-1]["recall@10"] = f"{row.test('recall@10').mean():.4f}"
            lines[-1]["recall@10, targets that do not collide"] = f"{alone:.4f}"
    return lines


def _distances(job: Job, results_dir: str) -> tuple[float, float, float] | None:
    """Return the shares of items in which tokenizers of a pre-training differ: neighbours, the ends, their first token.

    None for other jobs, and for one tokenizer. Unrelated ones are in the order of their seeds.
    """
    if job.kind != "pretrain":
        return None
    kept = [kept_codes(need, results_dir) for need in job.needs]
    codes = np.array([one[epoch] for one in kept for epoch in job.flags["sem_id_epochs"] if epoch in one])
    if len(codes) < 2:
        return None
    apart = distances(codes)
    return apart.diagonal(1).mean(), apart[0, -1], (codes[0, :, 0] != codes[-1, :, 0]).mean()


def trained_users_table(study: Study, rows: list[Row]) -> list[Line]:
    """Return the rows' metrics among the test users that training saw, and among the others, with each seed's gain.

    Empty unless `train_user_ratio` keeps users from training.
    """
    rows = [row for row in rows if all(_train_user_ratio(cell) < 1 for cell in row.cells)]
    if not rows:
        return []
    interactions = _interactions(study)
    users = interactions.users_of(split_positions(interactions.offsets, "test"))

    def trained_on(cell: Cell) -> np.ndarray:
        return training_users(interactions.num_users, _train_user_ratio(cell), cell.seed)[users]

    lines = [{"variant": row.name} for row in rows]
    for group, seen in (("trained on", True), ("new", False)):
        members = [row.among([trained_on(cell) == seen for cell in row.cells]) for row in rows]
        for line, row in zip(lines, members, strict=True):
            pair = with_baseline(row, members, study)
            for metric in GAINS:
                line[f"{metric}, {group}"] = f"{row.test(metric).mean():.4f}"
                line[f"{metric}, {group}, gain"] = gains_by_seed(*pair, metric) if pair else ""
    return lines


def write_table(study: Study, label: str, results_dir: str) -> str:
    """Write a study's table as Markdown and CSV, <results_dir>/tables/<study>-<label>; return the Markdown."""
    outcomes = read_outcomes(study.jobs(), results_dir)
    rows = finished_rows(study, outcomes)
    lines = table(study, rows, outcomes)
    parts = [f"## {study.title}", markdown(lines)]
    for baseline in study.further_baselines:
        gains = table(replace(study, baseline=baseline), rows, outcomes)
        shown = [{k: v for k, v in line.items() if k == "variant" or " gain" in k} for line in gains]
        parts += [f"Gains over {baseline}:", markdown([line for line in shown if any(list(line.values())[1:])])]
    if any(len(cell.candidates) > 1 for cell in study.cells):
        for counting, says in COUNTING.items():
            others = table(study, finished_rows(study, outcomes, counting), outcomes)
            parts.append(f"The same with {says}, instead of the best on validation:")
            parts.append(markdown([{k: v for k, v in line.items() if not k.startswith("minutes")} for line in others]))
    if users := trained_users_table(study, rows):
        parts += ["Test users that training saw, and those that are new to the model:", markdown(users)]
    if study.popularity_edges and rows:
        parts += [
            "Recall@10 by the target's interactions in the training part of all users:",
            markdown(popularity_table(study, rows)),
        ]
    if study.identifiers and rows:
        parts += ["The semantic IDs:", markdown(identifiers_table(study, rows, results_dir))]
    text = "\n\n".join(parts) + "\n"
    file = Path(results_dir) / "tables" / f"{study.name}-{label}"
    write_text(file.with_suffix(".md"), text)
    if lines:
        with atomic_path(file.with_suffix(".csv")) as path, open(path, "w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    return text


def markdown(lines: list[Line]) -> str:
    """Return lines as a Markdown table."""
    if not lines:
        return "Nothing is done yet."
    rows = [list(lines[0]), ["---"] * len(lines[0]), *(list(line.values()) for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _interactions(study: Study) -> Interactions:
    flags = next(study.cells[0].candidates[0].with_needs()).flags
    return load_interactions(dataset_folder(flags["data_dir"], flags["dataset"]))


def _train_user_ratio(cell: Cell) -> float:
    """Return the share of the users that a cell's recommender is trained on; 1.0 where nothing is trained."""
    return min(job.flags.get("train_user_ratio", 1.0) for job in cell.candidates[0].with_needs())
