"""Show what a run came to: metrics beside baselines and recommendations in words, and all of it in report.html.

python report.py ckpt/Sample/mtgrec.winner.json --baseline=ckpt/Sample/single.winner.json --users=3
python report.py ckpt/Sample/finetune_best_104
python report.py --compare ckpt/Sample/pretrain_tau1 'ckpt/Sample/finetune_*'
"""

import json
import shutil
import sys
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

from evaluation.metrics import metric_titles
from evaluation.run import RESULTS_FILE, load_run, single_tokenizer_run
from reporting.compare import compare_runs
from reporting.curves import curriculum_section, training_section
from reporting.headline import headline_section
from reporting.page import write_page
from reporting.report_data import ReportData
from reporting.settings import settings_section
from reporting.tokenizers import tokenizer_section
from reporting.users import users_section
from utils.config import parse_config
from utils.errors import InputError
from utils.runtime import run_command
from utils.text_table import shorten, text_table

SECTIONS = (headline_section, training_section, curriculum_section, tokenizer_section, users_section, settings_section)

BASELINE_SECTIONS = (headline_section, training_section, users_section, settings_section)


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
        return [*argv[:start], f"--compare={json.dumps(argv[start + 1 : end], ensure_ascii=False)}", *argv[end:]]
    return argv


def metrics_table(rows: list[tuple[str, dict[str, float]]]) -> str:
    """Return named rows of metrics as an aligned table."""
    titles = metric_titles(list(rows[-1][1]))
    cells = [
        [label, *(f"{metrics[name]:.4f}" if name in metrics else "-" for name in titles)] for label, metrics in rows
    ]
    return text_table(["test", *(f"{title:>9}" for title in titles.values())], cells)


def recommendations(data: ReportData, count: int) -> str:
    """Return `count` users, spread over all of them: history, the item that came next, and what was recommended."""
    results = data.run.user_results
    ranks, step = results.ranks(), max(1, len(results.users) // max(1, count))
    columns = min(120, shutil.get_terminal_size((100, 20)).columns)

    def line(item: str, mark: str = "-") -> str:
        return "    " + shorten(f"{mark} {data.text(item)}", max(20, columns - 4))

    blocks = []
    for row in list(range(step // 2, len(results.users), step))[:count]:
        user, target, rank = results.users[row], results.targets[row], ranks[row]
        history, length = data.history(user, 5)
        items = list(dict.fromkeys(item for item in results.items[row] if item is not None))[:5]
        hit = f"recommended at rank {rank + 1}" if rank < results.k else "not among the recommended"
        lines = [
            f"User {user}: {length} items, the last {len(history)}, newest last",
            *map(line, history),
            f"  came next ({hit})",
            line(target),
            f"  recommended, best first, the first {len(items)} real items",
            *(line(item, "*" if item == target else "-") for item in items),
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def write_report(data: ReportData, file: Path) -> None:
    """Write the HTML report on a run, and its pictures beside it."""
    run = data.run
    begun_with = run.settings.get("pretrained_model")
    kind = "pre-training" if run.is_pretraining else "fine-tuning" if begun_with else "training"
    what = run.method or f"{kind} with {len(run.labels)} tokenizer{'s' * (len(run.labels) > 1)}"
    sections = [section(data) for section in (BASELINE_SECTIONS if run.method else SECTIONS)]
    write_page(file, run.folder.name, f"{run.settings['dataset']}, {what}", sections)


def main(argv: list[str] | None = None) -> None:
    """Print and write the report; `argv` are the arguments, by default the command line's."""
    argv = with_lists(list(sys.argv[1:] if argv is None else argv))
    config, _ = parse_config(ReportConfig, argv, "report.py", __doc__)
    if config.compare:
        compare(config)
        return
    run = load_run(Path(config.run))
    baseline = load_run(Path(config.baseline)) if config.baseline else single_tokenizer_run(run)
    if baseline and baseline.settings["dataset"] != run.settings["dataset"]:
        raise InputError(f"--baseline={config.baseline} is of another dataset: {baseline.settings['dataset']}")
    if baseline and not baseline.has_data_of(run):
        raise InputError(f"--baseline={config.baseline} was made with other interactions than {run.folder}")
    data = ReportData(run, baseline)
    *others, own = [(row.name, row.metrics) for row in data.rows]
    name = f"MTGRec ({run.folder.name})" if baseline and not run.method else run.folder.name
    print(f"{run.settings['dataset']}: {len(data.rows[0].values):,} test users\n")
    print(metrics_table([*others, (name, own[1])]))
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
        named = Path(pattern)  # a name that exists is that name and no pattern: x[1]
        matches = [named] if named.exists() else [Path(match) for match in sorted(glob(pattern))]
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
