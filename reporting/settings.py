"""Settings and surroundings of a run: dataset, settings, versions, hardware, duration, memory, command."""

from typing import Any

import numpy as np
from markupsafe import Markup

from baselines.config import BaselineConfig
from data.interactions import Interactions, item_counts
from evaluation.run import Run
from reporting.curves import phase_seconds
from reporting.page import PIECES, Section, section
from reporting.report_data import ReportData
from training.config import FinetuneConfig, PretrainConfig


def settings_section(data: ReportData) -> Section:
    """Return everything that is needed to judge and to repeat the run."""
    run = data.run
    blocks = [PIECES.heading("Dataset"), PIECES.definitions(describe_dataset(data.interactions))]
    blocks += [PIECES.heading("Run"), PIECES.definitions(describe_run(run))]
    if run.environment:
        blocks += [PIECES.heading("Command"), Markup("<pre>{}</pre>").format(run.environment["command"])]
    defaults = default_settings(run)
    rows = [
        (name, str(value) if value == defaults.get(name) else Markup("<b>{}</b>").format(str(value)))
        for name, value in run.settings.items()
    ]
    return section("Facts", [*blocks, PIECES.heading("Settings"), PIECES.definitions(rows)])


def default_settings(run: Run) -> dict[str, Any]:
    """Return the defaults of a run's stage."""
    if run.method:
        return vars(BaselineConfig())
    return vars(PretrainConfig() if run.is_pretraining else FinetuneConfig())


def describe_dataset(interactions: Interactions) -> list[tuple[str, str]]:
    """Return the figures of the paper's Table 1, and a few more."""
    users, items, total = interactions.num_users, interactions.num_items, len(interactions.items)
    lengths = np.diff(interactions.offsets)
    popularity = item_counts(interactions)[1:]
    return [
        ("users", f"{users:,}"),
        ("items", f"{items:,}"),
        ("interactions", f"{total:,}"),
        ("sparsity", f"{1 - total / (users * items):.3%}"),
        ("items per user", f"{lengths.mean():.2f} on average, {lengths.min()} to {lengths.max()}"),
        ("users per item", f"{popularity.mean():.2f} on average, {popularity.min()} to {popularity.max()}"),
    ]


def describe_run(run: Run) -> list[tuple[str, str]]:
    """Return duration, memory, versions and hardware, as far as they were recorded."""
    environment, found = run.environment, [("folder", str(run.folder))]
    if environment:
        versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
        known = environment | {"commit": environment["commit"] or "not in a Git repository", "versions": versions}
        found += [(name, known[name]) for name in ("started", "commit", "versions", "hardware", "system")]
    else:
        found.append(("versions, hardware, command", "not recorded by this run"))
    seconds = sum(phase_seconds(run).values())
    if seconds:
        found.append(("duration", f"{seconds / 3600:.2f} h" if seconds > 5400 else f"{seconds / 60:.1f} min"))
    for line in run.events.get("test", []):
        peak = line.get("peak_memory_mb", {})
        found += [(f"peak memory, {name}", f"{value / 1024:.2f} GiB") for name, value in peak.items()]
    return found
