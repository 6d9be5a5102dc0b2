"""Several runs side by side: what differs in their settings, their curves, and paired differences."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from evaluation.compare import Interval, bootstrap_over_users, paired_differences
from evaluation.metrics import metric_titles
from evaluation.run import Run
from reporting.curves import phase_seconds
from reporting.page import PIECES, Section, section, write_page
from reporting.pictures import COLOURS, by_epoch, draw_lines, draw_rows, picture, short, without_middle, words
from utils.errors import InputError
from utils.text_table import text_table

# Settings that say where a run lies, not what it is.
PLACES = ("run_name", "ckpt_dir", "data_dir", "log_dir", "tensorboard_log_dir", "results_dir", "log_with")


def compare_runs(runs: Sequence[Run], file: Path) -> str:
    """Write the comparison of finished runs on one dataset as HTML, and return its table as text.

    Raises:
        InputError: The runs have different datasets, interactions or validation metrics.
    """
    for key in ("dataset", "val_metric"):
        values = list(dict.fromkeys(run.settings[key] for run in runs))
        if len(values) > 1:
            raise InputError(f"the runs differ in {key} ({', '.join(values)}) and cannot be compared")
    for run in runs[1:]:
        if not run.has_data_of(runs[0]):
            raise InputError(f"{runs[0].folder} and {run.folder} were made with other interactions than each other")
    metric = runs[0].settings["val_metric"]
    runs = sorted(runs, key=lambda run: -run.tokenizer["valid"][metric])
    names = short_names(runs)
    tests = [run.tokenizer["test"] for run in runs]
    titles = metric_titles([name for name in tests[0] if all(name in test for test in tests)])
    valid = f"valid. {metric_titles([metric])[metric]}"
    head = ["run", valid, *(f"test {title}" for title in titles.values()), "hours"]
    rows = []
    for name, run, test in zip(names, runs, tests, strict=True):
        scores = (run.tokenizer["valid"][metric], *(test[key] for key in titles))
        hours = sum(phase_seconds(run).values()) / 3600
        rows.append([name, *(f"{score:.4f}" for score in scores), f"{hours:.2f}"])
    sections = [
        section("Runs", [PIECES.table(head, rows, 0)], metric=metric),
        differences_section(runs, names),
        paired_section(runs, names, metric),
        curves_section(runs, names, metric),
    ]
    write_page(file, f"{len(runs)} runs compared", runs[0].settings["dataset"], sections)
    return text_table(head, rows)


def short_names(runs: Sequence[Run]) -> list[str]:
    """Return the folders' names; with their parents where a name occurs twice."""
    names = [run.folder.name for run in runs]
    return [str(run.folder) if names.count(name) > 1 else name for run, name in zip(runs, names, strict=True)]


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return {setting: value in each run} for the settings in which the runs differ; "–" where a run has none."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in PLACES)
    values = {name: [run.settings.get(name, "–") for run in runs] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def differences_section(runs: Sequence[Run], names: Sequence[str]) -> Section:
    """Return the settings that are not the same in all runs."""
    found = differing_settings(runs)
    if not found:
        return section("Settings", ["The runs have the same settings."])
    rows = [[name, *(_tail(str(value)) for value in row)] for name, row in found.items()]
    return section("Settings", [PIECES.table(["setting", *names], rows)])


def _tail(value: str) -> str:
    """Return a setting's value, of a long one (a path, a list) the end."""
    return value if len(value) <= 36 else f"…{value[-35:]}"


def paired_section(runs: Sequence[Run], names: Sequence[str], metric: str) -> Section:
    """Return each run's difference from the first, user by user."""
    with_users = [(name, run) for name, run in zip(names, runs, strict=True) if run.user_results_file.is_file()]
    values = {"metric": metric, "first": names[0]}
    if len(with_users) < 2 or with_users[0][1] is not runs[0]:
        return section("Differences", ["There are no result files per user to compare."], **values)
    found = {name: paired_interval(runs[0], run, metric) for name, run in with_users[1:]}
    rows = [
        [name, f"{one.mean:+.4f}", f"{one.low:+.4f} to {one.high:+.4f}", _verdict(one)] for name, one in found.items()
    ]
    about = words("differences", metric=metric, first=short(names[0], 30))
    drawn = picture(*about, draw_differences, found, height=1.6 + 0.35 * len(found))
    return section("Differences", [PIECES.table(["run", "difference", "95% interval", ""], rows), [drawn]], **values)


def paired_interval(first: Run, second: Run, metric: str) -> Interval:
    """Return how much better the second run is, over the users that both were tested on."""
    differences = paired_differences(first.user_results, second.user_results, [metric])
    return bootstrap_over_users(differences)[0]


def _verdict(difference: Interval) -> str:
    if not difference.is_clear:  # nor is one of NaN, of a user or none
        return "not told apart"
    return "higher" if difference.mean > 0 else "lower"


def draw_differences(axes: Axes, found: dict[str, Interval]) -> None:
    draw_rows(axes, without_middle(list(found), 28), list(found.values()), [{"color": COLOURS[0]}] * len(found))
    axes.axvline(0, color="black", linewidth=1)


def curves_section(runs: Sequence[Run], names: Sequence[str], metric: str) -> Section:
    """Return the runs' losses and validation scores over the epochs."""
    named = list(zip(without_middle(names, 30), runs, strict=True))
    losses, scores = (
        {name: by_epoch(run.events[event], *keys) for name, run in named if run.events.get(event)}
        for event, *keys in (("epoch", "loss"), ("valid", "mean", metric))
    )
    shown = picture(*words("validations", metric=metric), draw_lines, scores, ylim=(0, None))
    return section("Curves", [[picture(*words("losses"), draw_lines, losses), shown]])
