"""How training went: losses, learning rate, gradient norm, validation, and where the time went."""

from matplotlib.axes import Axes

from evaluation.run import Run
from reporting.page import Section
from reporting.pictures import COLOURS, Line, Marks, Picture, by_epoch, draw_marks, line_picture, picture
from reporting.report_data import ReportData, metric_titles
from training.schedule import stage_ends

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
    events = {phase: run.events.get(event, []) for phase, event in PHASES.items()}
    totals = {phase: sum(line.get("seconds", 0) for line in lines) for phase, lines in events.items()}
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
    found = [loss_picture(run, marks), *validation_pictures(run, marks)]
    found.append(
        line_picture(
            "learning_rate",
            "Learning rate",
            "Rises during the warm-up, then falls along half a cosine to 0.",
            {"learning rate": step_curve(run, "learning_rate")},
            **{"marks": marks, "ylim": (0, None), "legend": 0},
        )
    )
    found += [gradient_picture(run, marks), time_picture(phase_seconds(run))]
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
