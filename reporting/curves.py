"""How training went: losses, validation, where the time went, and what the curriculum did."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from evaluation.metrics import metric_titles
from evaluation.run import Run
from reporting.page import Section, section
from reporting.pictures import COLOURS, Line, Marks, Picture, by_epoch, draw_lines, draw_marks, picture, words
from reporting.report_data import ReportData
from training.curriculum import stage_ends

PHASES = {"training": "epoch", "influence": "influence", "validation": "valid", "choice": "choice", "test": "test"}


def marks_of(run: Run) -> Marks:
    """Return the stages' ends, the kept checkpoints and the chosen epoch of a run."""
    stages = []
    if run.is_pretraining:
        stages = stage_ends(run.settings["epoch_per_stage"], run.settings["epochs"])[0][:-1]
    done = max((line["epoch"] for line in run.events.get("epoch", [])), default=0)
    return Marks([epoch for epoch in stages if epoch < done], list(run.checkpoints), run.results["best_epoch"])


def phase_seconds(run: Run) -> dict[str, float]:
    """Return the wall-clock seconds of each phase, as far as they were recorded."""
    totals = {name: sum(line.get("seconds", 0) for line in run.events.get(PHASES[name], [])) for name in PHASES}
    return {phase: seconds for phase, seconds in totals.items() if seconds}


def step_curve(run: Run, key: str) -> Line:
    """Return a value that was recorded every some steps, by the epoch as a fraction."""
    epochs = run.events["epoch"]
    per_epoch = epochs[-1]["step"] / epochs[-1]["epoch"]
    lines = [line for line in run.events.get("train", []) if key in line]
    return [line["step"] / per_epoch for line in lines], [line[key] for line in lines]


def training_section(data: ReportData) -> Section:
    """Return the curves of a run."""
    run = data.run
    if not run.events.get("epoch"):
        return section("Training", ["This run's folder has no metrics.jsonl with epochs in it."])
    marks = marks_of(run)
    found = [picture(*words("loss"), draw_loss, run, marks), *validation_pictures(run, marks)]
    if run.events.get("train"):
        rates = {"learning rate": step_curve(run, "learning_rate")}
        found.append(picture(*words("learning_rate"), draw_lines, rates, marks=marks, ylim=(0, None), legend=0))
        found.append(picture(*words("gradient_norm"), draw_gradient_norm, run, marks))
    found.append(picture(*words("time"), draw_times, phase_seconds(run), height=2.2, legend=2))
    return section("Training", [found])


def draw_loss(axes: Axes, run: Run, marks: Marks) -> None:
    if run.events.get("train"):
        axes.plot(*step_curve(run, "loss"), color=COLOURS[5], linewidth=0.7, alpha=0.7, label="every 50 steps")
    epochs, losses = by_epoch(run.events["epoch"], "loss")
    axes.plot(epochs, losses, color=COLOURS[0], label="epoch", marker=".")
    axes.set_ylim(min(losses) - 0.05 * (max(losses) - min(losses) + 0.1), max(losses) * 1.05)
    axes.set_xlabel("epoch")
    draw_marks(axes, marks)


def draw_gradient_norm(axes: Axes, run: Run, marks: Marks) -> None:
    """Draw the gradient norm before it was clipped."""
    axes.plot(*step_curve(run, "gradient_norm"), color=COLOURS[0], linewidth=0.8)
    axes.axhline(run.settings["max_grad_norm"], color=COLOURS[1], linestyle="--", label="clipped to")
    axes.set_xlabel("epoch")
    axes.set_ylim(bottom=0)
    draw_marks(axes, marks)


def validation_pictures(run: Run, marks: Marks) -> list[Picture]:
    """Return the validation scores over the epochs, where there were several, and those of each tokenizer."""
    lines, metric = run.events.get("valid", []), run.settings["val_metric"]
    found = []
    if len(lines) > 1:
        means = {title: by_epoch(lines, "mean", name) for name, title in metric_titles(list(lines[0]["mean"])).items()}
        found.append(picture(*words("validation"), draw_lines, means, marks=marks, ylim=(0, None)))
    if len(run.labels) > 1 and lines:
        of, title = "validation_per_tokenizer", metric_titles([metric])[metric]
        scores = {label: by_epoch(lines, "per_tokenizer", label, metric) for label in run.labels}
        if len(lines) > 1:
            found.append(picture(*words(of, title=title), draw_lines, scores, marks=marks))
        else:
            once = words("validation_once_per_tokenizer", of, title=title)
            found.append(picture(*once, draw_tokenizers, run, [values[0] for _, values in scores.values()]))
    return found


def draw_tokenizers(axes: Axes, run: Run, values: list[float]) -> None:
    """Draw a score of each tokenizer, with a ring around the chosen one's."""
    axes.plot(run.labels, values, "o", color=COLOURS[0])
    axes.plot(run.chosen, values[run.chosen], "o", markersize=13, fillstyle="none", color="black")
    axes.tick_params(axis="x", rotation=90 if len(values) > 8 else 0)
    axes.set_xlabel("tokenizer")


def draw_times(axes: Axes, seconds: dict[str, float]) -> None:
    """Draw the minutes of each phase as one bar."""
    left, total = 0.0, sum(seconds.values())
    for (phase, value), colour, hatch in zip(seconds.items(), COLOURS, ("", "//", "..", "xx"), strict=False):
        label = f"{phase} {value / 60:.1f} min ({value / total:.0%})"
        axes.barh(0, value / 60, left=left, color=colour, edgecolor="white", hatch=hatch, label=label)
        left += value / 60
    axes.set_yticks([])
    axes.set_xlabel("minutes")
    axes.grid(visible=False)


def curriculum_section(data: ReportData) -> Section:
    """Return the curriculum of the run, or of the pre-training it started from."""
    run = data.run.pretraining
    if run is None:
        lost = data.run.settings.get("pretrained_model")
        said = f"This run started from {lost}, which is not there any more."
        said = said if lost else "This run had no pre-training with several tokenizers."
        return section("Curriculum", [said], whose="")
    if not run.events.get("influence"):
        return section("Curriculum", [f"{run.folder.name} drew all tokenizers equally often."], whose="")
    stages = [line["stage"] for line in run.events["influence"]]
    names = list(run.events["influence"][0]["influence"])
    scores, probabilities = (
        np.array([[line[key][name] for name in names] for line in run.events["influence"]])
        for key in ("influence", "probabilities")
    )
    last = probabilities[-1]
    low, high = int(last.argmin()), int(last.argmax())
    sentence = (
        f"In the last stage, at tau {run.settings['tau']:g}, tokenizer {names[high]} was drawn most often "
        f"({last[high]:.2%}) and {names[low]} least ({last[low]:.2%}); uniform would be {1 / len(last):.2%}."
    )
    ratio = np.vstack([np.ones(len(names)), probabilities * len(names)])  # the first stage is uniform
    drawn_in = [stages[0], *(stage + 1 for stage in stages)]
    height = 1.6 + 0.42 * len(ratio)
    found = [
        picture(*words("sampling_probabilities"), draw_ratio, ratio, drawn_in, names, wide=True, height=height),
        picture(*words("influence"), draw_influence, scores, stages, names),
        picture(*words("spread"), draw_spread, ratio, drawn_in),
    ]
    whose = f" These are those of {run.folder.name}, which this run started from." if run is not data.run else ""
    return section("Curriculum", [sentence, found], whose=whose)


def draw_ratio(axes: Axes, ratio: np.ndarray, stages: list[int], names: list[str]) -> None:
    """Draw the sampling probabilities of all stages in times uniform, float [S, G], as a heat map."""
    reach = max(float(np.abs(ratio - 1).max()), 1e-6)
    image = axes.imshow(ratio, cmap="PuOr_r", norm=TwoSlopeNorm(1, 1 - reach, 1 + reach), aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 12 else 0)
    axes.set_yticks(range(len(ratio)), [f"stage {number}" for number in stages])
    axes.set_xlabel("tokenizer")
    axes.grid(visible=False)
    if len(names) <= 12:
        for (row, column), value in np.ndenumerate(ratio):
            colour = "white" if abs(value - 1) > 0.6 * reach else "black"
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=8, color=colour)
    axes.figure.colorbar(image, ax=axes, format="%.3f", label="times uniform")


def draw_influence(axes: Axes, influence: np.ndarray, stages: list[int], names: list[str]) -> None:
    """Draw the influence scores of each stage, float [S, G]."""
    x = list(range(len(names)))
    lines = {f"after stage {stage}": (x, row) for stage, row in zip(stages, influence, strict=True)}
    draw_lines(axes, lines, "tokenizer", points=True)
    axes.set_xticks(x, names, rotation=90 if len(names) > 6 else 0)


def draw_spread(axes: Axes, ratio: np.ndarray, stages: list[int]) -> None:
    """Draw the highest and the lowest probability of each stage in times uniform, float [S, G]."""
    highest, lowest = ratio.max(axis=1), ratio.min(axis=1)
    axes.fill_between(stages, lowest, highest, color=COLOURS[5], alpha=0.25)
    draw_lines(axes, {"highest": (stages, highest), "lowest": (stages, lowest)}, "stage", points=True)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(stages)
