"""How training went: losses, validation, where the time went, and what the curriculum did."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from evaluation.run import Run
from reporting.page import Section
from reporting.pictures import COLOURS, Line, Marks, Picture, by_epoch, draw_lines, draw_marks, line_picture, picture
from reporting.report_data import ReportData, metric_titles
from training.curriculum import stage_ends

PHASES = {"training": "epoch", "influence": "influence", "validation": "valid", "test": "test"}


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
    lead = (
        "How the run went, epoch by epoch. Dotted lines end the curriculum's stages, triangles are kept checkpoints, "
        "the black line is the epoch whose weights were tested."
    )
    if not run.events.get("epoch"):
        return Section("Training", lead, ["This run's folder has no metrics.jsonl with epochs in it."])
    marks = marks_of(run)
    rates, caption = step_curve(run, "learning_rate"), "Rises during the warm-up, then falls along half a cosine to 0."
    style = {"marks": marks, "ylim": (0, None), "legend": 0}
    found = [
        loss_picture(run, marks),
        *validation_pictures(run, marks),
        line_picture("learning_rate", "Learning rate", caption, {"learning rate": rates}, **style),
        gradient_picture(run, marks),
        time_picture(phase_seconds(run)),
    ]
    return Section("Training", lead, [found])


def loss_picture(run: Run, marks: Marks) -> Picture:
    """Return the training loss."""

    def draw(axes: Axes) -> None:
        axes.plot(*step_curve(run, "loss"), color=COLOURS[5], linewidth=0.7, alpha=0.7, label="every 50 steps")
        epochs, losses = by_epoch(run.events["epoch"], "loss")
        axes.plot(epochs, losses, color=COLOURS[0], label="epoch", marker=".")
        axes.set_ylim(min(losses) - 0.05 * (max(losses) - min(losses) + 0.1), max(losses) * 1.05)
        axes.set_xlabel("epoch")
        draw_marks(axes, marks)

    caption = "Mean loss of each epoch (lower is better); the pale line is every 50 steps."
    return picture("loss", "Training loss", caption, draw)


def gradient_picture(run: Run, marks: Marks) -> Picture:
    """Return the gradient norm, before it was clipped."""

    def draw(axes: Axes) -> None:
        axes.plot(*step_curve(run, "gradient_norm"), color=COLOURS[0], linewidth=0.8)
        axes.axhline(run.settings["max_grad_norm"], color=COLOURS[1], linestyle="--", label="clipped to")
        axes.set_xlabel("epoch")
        axes.set_ylim(bottom=0)
        draw_marks(axes, marks)

    caption = (
        "Steps above the dashed line were clipped to it; a norm that keeps growing announces a learning rate too high."
    )
    return picture("gradient_norm", "Gradient norm before clipping", caption, draw)


def validation_pictures(run: Run, marks: Marks) -> list[Picture]:
    """Return the validation scores over the epochs, where there were several, and those of each tokenizer."""
    lines, metric = run.events.get("valid", []), run.settings["val_metric"]
    found = []
    if len(lines) > 1:
        titles = metric_titles(list(lines[0]["mean"]))
        means = {title: by_epoch(lines, "mean", name) for name, title in titles.items()}
        caption = "Means over the tokenizers, higher is better; a fall that lasts means overfitting."
        found.append(line_picture("validation", "Validation", caption, means, marks=marks, ylim=(0, None)))
    if len(run.labels) > 1 and lines:
        of = {label: by_epoch(lines, "per_tokenizer", label, metric) for label in run.labels}
        about = ("validation_per_tokenizer", f"Validation {metric_titles([metric])[metric]} of each tokenizer")
        if len(lines) > 1:
            caption = "How much the tokenizers differ, over the epochs."
            found.append(line_picture(*about, caption, of, marks=marks))
        else:
            caption = "How much the tokenizers differ; the ringed one is tested."
            points = [values[0] for _, values in of.values()]
            found.append(picture(*about, caption, lambda axes: draw_tokenizers(axes, run, points)))
    return found


def draw_tokenizers(axes: Axes, run: Run, values: list[float]) -> None:
    """Draw a score of each tokenizer, with a ring around the chosen one's."""
    axes.plot(run.labels, values, "o", color=COLOURS[0])
    axes.plot(run.chosen, values[run.chosen], "o", markersize=13, fillstyle="none", color="black")
    axes.tick_params(axis="x", rotation=90 if len(values) > 8 else 0)
    axes.set_xlabel("tokenizer")


def time_picture(seconds: dict[str, float]) -> Picture:
    """Return the minutes of each phase as one bar."""

    def draw(axes: Axes) -> None:
        left, total = 0.0, sum(seconds.values())
        for index, (phase, value) in enumerate(seconds.items()):
            label = f"{phase} {value / 60:.1f} min ({value / total:.0%})"
            hatch = ("", "//", "..", "xx")[index]
            axes.barh(0, value / 60, left=left, color=COLOURS[index], edgecolor="white", hatch=hatch, label=label)
            left += value / 60
        axes.set_yticks([])
        axes.set_xlabel("minutes")
        axes.grid(visible=False)

    caption = "Wall-clock minutes of each phase; evaluation is validation and test."
    return picture("time", "Where the time went", caption, draw, height=2.2, legend=2)


def curriculum_section(data: ReportData) -> Section:
    """Return the curriculum of the run, or of the pre-training it started from."""
    lead = (
        "After each stage of pre-training, every tokenizer gets an influence score: how much a step on its data would "
        "lower the validation loss. The next stage draws tokenizers by probabilities made of all scores so far."
    )
    run = data.run.pretraining
    if run is None:
        return Section("Curriculum", lead, ["This run had no pre-training with several tokenizers."])
    if not run.events.get("influence"):
        return Section("Curriculum", lead, [f"{run.folder.name} drew all tokenizers equally often."])
    stages = [line["stage"] for line in run.events["influence"]]
    names = list(run.events["influence"][0]["influence"])
    scores, probabilities = (
        np.array([[line[key][name] for name in names] for line in run.events["influence"]])
        for key in ("influence", "probabilities")
    )
    if run is not data.run:
        lead += f" These are those of {run.folder.name}, which this run started from."
    last = probabilities[-1]
    low, high = int(last.argmin()), int(last.argmax())
    sentence = (
        f"In the last stage, at tau {run.settings['tau']:g}, tokenizer {names[high]} was drawn most often "
        f"({last[high]:.2%}) and {names[low]} least ({last[low]:.2%}); uniform would be {1 / len(last):.2%}."
    )
    found = [
        probability_picture(probabilities, stages, names),
        influence_picture(scores, stages, names),
        spread_picture(probabilities, stages),
    ]
    return Section("Curriculum", lead, [sentence, found])


def probability_picture(probabilities: np.ndarray, stages: list[int], names: list[str]) -> Picture:
    """Return sampling probability as a heat map: float [S, G]."""

    def draw(axes: Axes) -> None:
        ratio = np.vstack([np.ones(len(names)), probabilities * len(names)])  # the first stage is uniform
        reach = max(float(np.abs(ratio - 1).max()), 1e-6)
        norm = TwoSlopeNorm(1, 1 - reach, 1 + reach)
        image = axes.imshow(ratio, cmap="PuOr_r", norm=norm, aspect="auto")
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 12 else 0)
        axes.set_yticks(range(len(ratio)), [f"stage {number}" for number in (stages[0], *(s + 1 for s in stages))])
        axes.set_xlabel("tokenizer")
        axes.grid(visible=False)
        if len(names) <= 12:
            for (row, column), value in np.ndenumerate(ratio):
                colour = "white" if abs(value - 1) > 0.6 * reach else "black"
                axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=8, color=colour)
        axes.figure.colorbar(image, ax=axes, format="%.3f", label="times uniform")

    caption = (
        "Orange is drawn more often than with equal chances, purple less; the scale reaches as far as the data do."
    )
    title, height = "Sampling probability, relative to uniform", 1.6 + 0.42 * (len(stages) + 1)
    return picture("sampling_probabilities", title, caption, draw, wide=True, height=height)


def influence_picture(influence: np.ndarray, stages: list[int], names: list[str]) -> Picture:
    """Return the influence scores of each stage: float [S, G]."""

    def draw(axes: Axes) -> None:
        x = list(range(len(names)))
        lines = {f"after stage {stage}": (x, row) for stage, row in zip(stages, influence, strict=True)}
        draw_lines(axes, lines, "tokenizer", points=True)
        axes.set_xticks(x, names, rotation=90 if len(names) > 6 else 0)

    caption = (
        "One line per stage; higher means that data of this tokenizer help validation more. Only differences within a "
        "stage change probabilities."
    )
    return picture("influence", "Influence scores", caption, draw)


def spread_picture(probabilities: np.ndarray, stages: list[int]) -> Picture:
    """Return the highest and the lowest probability of each stage."""

    def draw(axes: Axes) -> None:
        ratio = probabilities * probabilities.shape[1]
        x = [stages[0], *(stage + 1 for stage in stages)]
        highest, lowest = [1, *ratio.max(axis=1)], [1, *ratio.min(axis=1)]
        axes.fill_between(x, lowest, highest, color=COLOURS[5], alpha=0.25)
        draw_lines(axes, {"highest": (x, highest), "lowest": (x, lowest)}, "stage", points=True)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(x)

    caption = (
        "Highest and lowest probability in times uniform: lines that stay near 1 mean that the curriculum changes "
        "little; a lower tau spreads them."
    )
    return picture("spread", "Spread against uniform", caption, draw)
