"""How training went: losses, learning rate, gradient norm, validation, and where the time went."""

from matplotlib.axes import Axes

from evaluation.run import Run
from reporting.page import Section, paragraph
from reporting.pictures import COLOURS, Marks, Picture, draw_legend, draw_lines, draw_marks, picture
from reporting.report_data import ReportData
from reporting.terminal import metric_titles
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


def step_curve(run: Run, key: str) -> tuple[list[float], list[float]]:
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
        return Section("Training", lead, [paragraph("This run's folder has no metrics.jsonl with epochs in it.")])
    marks = marks_of(run)
    found = [loss_picture(run, marks)]
    found += [validation_picture(run, marks)] if len(run.events.get("valid", [])) > 1 else []
    if len(run.labels) > 1 and run.events.get("valid"):
        found.append(tokenizers_picture(run, marks))
    found += [curve(run, marks) for curve in (learning_rate_picture, gradient_picture)]
    found.append(time_picture(phase_seconds(run)))
    return Section("Training", lead, [found])


@picture("loss", "Training loss", "Mean loss of each epoch (lower is better); the pale line is every 50 steps.")
def loss_picture(axes: Axes, run: Run, marks: Marks) -> None:
    axes.plot(*step_curve(run, "loss"), color=COLOURS[5], linewidth=0.7, alpha=0.7, label="every 50 steps")
    epochs = run.events["epoch"]
    axes.plot([e["epoch"] for e in epochs], [e["loss"] for e in epochs], color=COLOURS[0], label="epoch", marker=".")
    losses = [e["loss"] for e in epochs]
    axes.set_ylim(min(losses) - 0.05 * (max(losses) - min(losses) + 0.1), max(losses) * 1.05)
    axes.set_xlabel("epoch")
    draw_marks(axes, marks)
    draw_legend(axes)


@picture("learning_rate", "Learning rate", "Rises during the warm-up, then falls along half a cosine to 0.")
def learning_rate_picture(axes: Axes, run: Run, marks: Marks) -> None:
    draw_lines(axes, {"learning rate": step_curve(run, "learning_rate")})
    axes.set_ylim(bottom=0)
    draw_marks(axes, marks)


@picture(
    "gradient_norm",
    "Gradient norm before clipping",
    "Steps above the dashed line were clipped to it; a norm that keeps growing announces a learning rate too high.",
)
def gradient_picture(axes: Axes, run: Run, marks: Marks) -> None:
    x, y = step_curve(run, "gradient_norm")
    axes.plot(x, y, color=COLOURS[0], linewidth=0.8)
    axes.axhline(run.settings["max_grad_norm"], color=COLOURS[1], linestyle="--", label="clipped to")
    axes.set_xlabel("epoch")
    axes.set_ylim(bottom=0)
    draw_marks(axes, marks)
    draw_legend(axes)


@picture(
    "validation", "Validation", "Means over the tokenizers, higher is better; a fall that lasts means overfitting."
)
def validation_picture(axes: Axes, run: Run, marks: Marks) -> None:
    lines = run.events["valid"]
    epochs = [line["epoch"] for line in lines]
    titles = metric_titles(list(lines[0]["mean"]))
    draw_lines(axes, {title: (epochs, [line["mean"][name] for line in lines]) for name, title in titles.items()})
    axes.set_ylim(bottom=0)
    draw_marks(axes, marks)
    draw_legend(axes)


def tokenizers_picture(run: Run, marks: Marks) -> Picture:
    """Return each tokenizer's validation score: over the epochs, or as points where there was one evaluation."""
    metric = run.settings["val_metric"]
    title = metric_titles([metric])[metric]
    lines = run.events["valid"]

    @picture(
        "validation_per_tokenizer",
        f"Validation {title} of each tokenizer",
        "How much the tokenizers differ; the ringed one is tested."
        if len(lines) == 1
        else "How much the tokenizers differ, over the epochs.",
    )
    def draw(axes: Axes) -> None:
        if len(lines) == 1:
            values = [lines[0]["per_tokenizer"][label][metric] for label in run.labels]
            axes.plot(run.labels, values, "o", color=COLOURS[0])
            axes.plot(run.chosen, values[run.chosen], "o", markersize=13, fillstyle="none", color="black")
            axes.tick_params(axis="x", rotation=90 if len(values) > 8 else 0)
            axes.set_xlabel("tokenizer")
            return
        epochs = [line["epoch"] for line in lines]
        of = {name: [line["per_tokenizer"][name][metric] for line in lines] for name in run.labels}
        draw_lines(axes, {name: (epochs, values) for name, values in of.items()})
        draw_marks(axes, marks)
        draw_legend(axes)

    return draw()


@picture(
    "time", "Where the time went", "Wall-clock minutes of each phase; evaluation is validation and test.", height=2.2
)
def time_picture(axes: Axes, seconds: dict[str, float]) -> None:
    left, total = 0.0, sum(seconds.values())
    for index, (phase, value) in enumerate(seconds.items()):
        label = f"{phase} {value / 60:.1f} min ({value / total:.0%})"
        hatch = ("", "//", "..", "xx")[index % 4]
        axes.barh(0, value / 60, left=left, color=COLOURS[index], edgecolor="white", hatch=hatch, label=label)
        left += value / 60
    axes.set_yticks([])
    axes.set_xlabel("minutes")
    axes.grid(visible=False)
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=2)
