"""Show what a run came to: metrics beside baselines and recommendations in words, and all of it in report.html.

python report.py ckpt/Sample/mtgrec.winner.json --baseline=ckpt/Sample/single.winner.json --users=3
python report.py ckpt/Sample/finetune_best_300
python report.py --compare ckpt/Sample/pretrain_tau1 'ckpt/Sample/finetune_*'
"""

import json
import sys
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

from evaluation.run import RESULTS_FILE, load_run, single_tokenizer_run
from reporting.compare import compare_runs
from reporting.headline import popularity_row
from reporting.report import write_report
from reporting.report_data import read_report_data
from reporting.terminal import metrics_table, recommendations
from utils.config import parse_config
from utils.errors import InputError
from utils.runtime import run_command


@dataclass
class ReportConfig:
    """Settings of the report; the run is given without a flag too."""

    run: str = ""
    """Run folder, or a <name>.winner.json that finetune.sh wrote."""
    baseline: str = ""
    """The same of the run to compare with; by default the best run beside it with one tokenizer and no pre-training."""
    users: int = 3
    """Users whose recommendations are printed."""
    compare: list[str] = field(default_factory=list)
    """Compare these runs instead: run folders, .winner.json files, or patterns such as 'ckpt/Sample/*'."""
    output: str = ""
    """HTML file; by default report.html in the run's folder, or compare.html beside the first of the compared runs."""
    reuse: bool = False
    """Leave a report.html alone that is newer than the run's results."""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        found = []
        if bool(self.run) == bool(self.compare):
            found.append("name a run folder: python report.py ckpt/<dataset>/<run>, or several with --compare")
        if self.output and Path(self.output).suffix != ".html":
            found.append(f"output={self.output} must end in .html")
        return found + ([f"users={self.users} must not be negative"] if self.users < 0 else [])


def with_lists(argv: list[str]) -> list[str]:
    """Let a run come without a flag, and any number of runs follow --compare."""
    if argv and not argv[0].startswith("-"):
        return [f"--run={argv[0]}", *argv[1:]]
    if "--compare" in argv:
        start = argv.index("--compare")
        end = next((i for i in range(start + 1, len(argv)) if argv[i].startswith("--")), len(argv))
        return [*argv[:start], f"--compare={json.dumps(argv[start + 1 : end])}", *argv[end:]]
    return argv


def main(argv: list[str] | None = None) -> None:
    """Print and write the report; `argv` are the arguments, by default the command line's."""
    argv = with_lists(list(sys.argv[1:] if argv is None else argv))
    config, _ = parse_config(ReportConfig, argv, "report.py", __doc__)
    if config.compare:
        compare(config)
        return
    run = load_run(Path(config.run))
    baseline = load_run(Path(config.baseline)) if config.baseline else single_tokenizer_run(run)
    data = read_report_data(run, baseline)
    popular = popularity_row(data.interactions, list(run.tokenizer["test"]))
    rows = [(popular.name, popular.metrics)]
    if baseline:
        rows.append(("One tokenizer, no pre-training", baseline.tokenizer["test"]))
    rows.append((f"MTGRec ({run.folder.name})" if baseline else run.folder.name, run.tokenizer["test"]))
    print(f"{run.settings['dataset']}: {len(popular.values):,} test users\n")
    print(metrics_table(rows))
    has_users = run.user_results_file.is_file()
    if config.users and has_users:
        print("\n" + recommendations(data, config.users))
    print(f"\nrun: {run.folder}\nper user: {run.user_results_file}{'' if has_users else ' (gone)'}")
    file = Path(config.output) if config.output else run.folder / "report.html"
    results = run.folder / RESULTS_FILE
    if not (config.reuse and file.is_file() and file.stat().st_mtime >= results.stat().st_mtime):
        write_report(data, file)
    print(f"report: {file}")


def compare(config: ReportConfig) -> None:
    """Print and write the comparison of several runs."""
    paths = []
    for pattern in config.compare:
        matches = [Path(match) for match in sorted(glob(pattern))]
        if not matches:
            raise InputError(f"{pattern} matches no run")
        several = len(matches) > 1  # of a pattern's matches, those that are no finished run are passed over
        finished = [path for path in matches if path.name.endswith(".winner.json") or (path / RESULTS_FILE).is_file()]
        paths += finished if several else matches
    runs = {run.folder.resolve(): run for run in map(load_run, paths)}
    if len(runs) < 2:
        raise InputError(f"{len(runs)} finished run is nothing to compare; name at least two")
    runs = list(runs.values())
    file = Path(config.output) if config.output else runs[0].folder.parent / "compare.html"
    print(compare_runs(runs, file))
    print(f"\nreport: {file}")


if __name__ == "__main__":
    run_command(main)
