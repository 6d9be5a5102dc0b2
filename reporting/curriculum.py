"""What the curriculum did: sampling probabilities, influence scores, and how far from uniform they are."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from reporting.page import Section
from reporting.pictures import COLOURS, Picture, draw_lines, picture
from reporting.report_data import ReportData


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
