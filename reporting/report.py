"""The report on one run: its sections in order."""

from pathlib import Path

from reporting.curriculum import curriculum_section
from reporting.curves import training_section
from reporting.headline import headline_section
from reporting.page import write_page
from reporting.report_data import ReportData
from reporting.settings import settings_section
from reporting.tokenizers import tokenizer_section
from reporting.users import users_section

SECTIONS = (
    headline_section,
    training_section,
    curriculum_section,
    tokenizer_section,
    users_section,
    settings_section,
)


def write_report(data: ReportData, file: Path) -> None:
    """Write the HTML report on a run, and its pictures beside it."""
    run = data.run
    stage = "pre-training" if run.is_pretraining else "fine-tuning" if run.settings["pretrained_model"] else "training"
    subtitle = f"{run.settings['dataset']}, {stage} with {len(run.labels)} tokenizer{'s' * (len(run.labels) > 1)}"
    write_page(file, run.folder.name, subtitle, [section(data) for section in SECTIONS])
