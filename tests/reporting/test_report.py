import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import read_results

import report
from evaluation.compare import bootstrap_over_users
from evaluation.results import most_popular
from evaluation.run import load_run, single_tokenizer_run
from report import metrics_table, write_report
from reporting import report_data
from reporting.curves import marks_of, phase_seconds
from reporting.headline import Row, headline_section, metric_picture, paper_rows
from reporting.pictures import Marks
from reporting.report_data import ReportData
from reporting.settings import default_settings
from training.config import PretrainConfig

PICTURES = {
    *("test_recall_10", "test_ndcg_10", "loss", "validation", "learning_rate", "gradient_norm", "time"),
    *("sampling_probabilities", "influence", "spread"),
    *("collisions", "codes", "usage", "perplexity", "drift", "distances", "items"),
}


@pytest.fixture(scope="module")
def reports(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the reports of the pre-training and of the fine-tuned run."""
    folder = tmp_path_factory.mktemp("reports")
    for name in ("pretrained", "tuned"):
        run = load_run(finished / name)
        write_report(ReportData(run, single_tokenizer_run(run)), folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in ("pretrained", "tuned")}


def test_what_a_run_records(finished):
    run = load_run(finished / "pretrained")
    assert marks_of(run) == Marks([1, 2], [2, 3], run.results["best_epoch"])
    assert set(phase_seconds(run)) == {"training", "influence", "validation", "test"}
    assert set(run.environment) == {
        "started",
        "command",
        "commit",
        "versions",
        "hardware",
        "threads",
        "system",
        "sources",
    }
    assert run.environment["versions"].keys() >= {"python", "torch", "transformers"}
    assert 50 < run.events["test"][0]["peak_memory_mb"]["machine"] < 20_000
    tuned = load_run(finished / "tuned")
    assert tuned.pretraining.folder == finished / "pretrained"
    assert single_tokenizer_run(tuned).folder == finished / "single"
    metric = tuned.user_results.per_user(["recall@10"])
    assert metric.mean() == pytest.approx(tuned.tokenizer["test"]["recall@10"])


def test_headline_has_all_methods_with_intervals(finished, reports):
    text = reports["tuned"].read_text()
    rows = re.findall(r"<th scope='row'>(Most popular items|One tokenizer[^<]*|tuned)</th>(.*?)</tr>", text)
    assert [name for name, _ in rows] == ["Most popular items", "One tokenizer, no pre-training: single", "tuned"]
    run = load_run(finished / "tuned")
    value = run.user_results.per_user(["ndcg@10"])[:, 0]
    half = bootstrap_over_users(value, 2000).half_width
    assert half == pytest.approx(1.959964 * value.std(ddof=1) / np.sqrt(len(value)), rel=0.15)
    assert f"{read_results(run.folder)['test']['ndcg@10']:.4f} <small>± {half:.4f}</small>" in rows[2][1]


def test_terminal_and_page_show_the_same_rows_computed_once(finished, monkeypatch, tmp_path, capsys):
    counted, pages = [], []
    monkeypatch.setattr(report_data, "most_popular", lambda *given: counted.append(given) or most_popular(*given))
    monkeypatch.setattr(report, "write_report", lambda data, file: pages.append(headline_section(data).blocks[1]))
    report.main([str(finished / "tuned"), "--users=0", f"--output={tmp_path / 'report.html'}"])
    printed, test = capsys.readouterr().out.splitlines()[3:6], read_results(finished / "tuned")["test"]
    names = ["Most popular items", "One tokenizer, no pre-training", "MTGRec (tuned)"]
    assert [line.split("  ")[0] for line in printed] == names
    assert printed[2].split()[2:] == [f"{value:.4f}" for value in test.values()]
    for line, row in zip(printed, re.findall(r"<th scope='row'>.*?</tr>", pages[0]), strict=True):
        assert re.findall(r"\d\.\d{4}", line) == re.findall(r"<td>(\d\.\d{4})", row)
    assert len(counted) == 1


def test_a_baseline_may_have_fewer_cut_offs(finished):
    data = ReportData(load_run(finished / "tuned"), load_run(finished / "single"))
    data.run.tokenizer["test"]["recall@20"] = data.run.tokenizer["test"]["recall@10"]
    tiles = headline_section(data).blocks[0]
    assert "<span>Recall@20</span>" in tiles
    rows = [Row(name, run.tokenizer["test"]) for name, run in (("single", data.baseline), ("tuned", data.run))]
    assert metric_picture(rows, "recall@20", "Recall@20", marked=1).png
    rows = [("single", data.baseline.tokenizer["test"]), ("tuned", data.run.tokenizer["test"])]
    assert metrics_table(rows).splitlines()[1].split()[3] == "-"


def test_names_stand_whole_beside_their_points(monkeypatch):
    seen: list = []
    monkeypatch.setattr("reporting.headline.draw_rows", lambda axes, names, *_: seen.append(names))
    methods = (("Most popular items", ""), ("One tokenizer, no pre-training", "single"), ("lr:0.1", ""))
    rows = [Row(name, {"recall@5": 0.1}, folder=folder) for name, folder in methods]
    metric_picture(rows, "recall@5", "Recall@5", 2)
    assert seen == [["Most popular items", "One tokenizer, no pre-training", "lr:0.1"]]


def test_papers_rows_stand_beside_its_datasets():
    (row,) = (row for row in paper_rows("Video_Games", ["recall@10", "ndcg@10"]) if row.name == "MTGRec (paper)")
    assert row.metrics == {"recall@10": 0.0956, "ndcg@10": 0.0517}
    assert paper_rows("Another", ["ndcg@10"]) == []


@pytest.mark.parametrize(("name", "own"), [("pretrained", {"validation_per_tokenizer"}), ("tuned", set())])
def test_every_picture_is_in_the_page_and_beside_it(reports, name, own):
    file = reports[name]
    assert {path.stem for path in file.with_name(f"{file.stem}_pictures").iterdir()} == PICTURES | own
    text = file.read_text()
    assert text.count("<img src='data:image/png;base64,") == len(PICTURES | own)
    assert text.count("<figcaption>") == len(PICTURES | own)
    assert "http" not in re.sub(r"base64,[^']*", "", text).replace("http-equiv", "")
    assert file.stat().st_size < 5e6


def test_users_have_their_histories_items_and_semantic_ids(finished, reports):
    text = reports["tuned"].read_text()
    run = load_run(finished / "tuned")
    cards = text.split("<div class='user'>")[1:]
    assert len(cards) == 10
    for card in cards:
        user = re.search(r"<h3>User (\w+)</h3>", card)[1]
        row = run.user_results.users.index(user)
        target = run.user_results.targets[row]
        assert ("class='hit'" in card) == (target in run.user_results.items[row])
        came_next = card[card.index("came next") : card.index("recommended, best first")]
        assert f"<span class='words'>&lt;b&gt;text&lt;/b&gt; &amp; $x_1$ of {target}</span>" in came_next
        codes = json.loads((run.dataset_folder / "rqvae" / "toy_8,8,8,8_2.sem_ids").read_text())[target]
        assert f"<b>{'·'.join(map(str, codes))}</b>" in came_next


def test_curriculum_of_a_fine_tuned_run_is_its_pre_trainings(reports):
    assert "These are those of pretrained" in reports["tuned"].read_text()
    assert "These are those of" not in reports["pretrained"].read_text()


def test_settings_that_are_no_defaults_are_bold(finished, reports):
    text = reports["pretrained"].read_text()
    assert "<dt>num_layers</dt><dd><b>1</b></dd>" in text
    assert "<dt>tau</dt><dd>1.0</dd>" in text
    assert default_settings(load_run(finished / "pretrained"))["epoch_per_stage"] == PretrainConfig().epoch_per_stage


def test_semantic_ids_made_again_are_not_shown_as_the_runs(finished, tmp_path):
    shutil.copytree(finished.parents[1] / "datasets", tmp_path / "datasets")
    run = load_run(finished / "tuned")
    run.settings["data_dir"] = str(tmp_path / "datasets")
    assert ReportData(run, None).codes.shape == (70, 4)
    file = tmp_path / "datasets" / "Tiny" / "rqvae" / "toy_8,8,8,8_2.sem_ids"
    codes = json.loads(file.read_text())
    file.write_text(json.dumps(dict(zip(codes, reversed(codes.values()), strict=True))))
    assert ReportData(run, None).codes is None


def test_run_without_records_still_has_a_report(finished, tmp_path):
    folder = tmp_path / "bare" / "Tiny" / "run"
    folder.mkdir(parents=True)
    for name in ("config.yaml", "results.json"):
        shutil.copy(finished / "tuned" / name, folder)
    run = load_run(folder)
    run.settings["pretrained_model"], run.tokenizer["prefix"] = "gone/model", "rqvae/gone_8,8,8,8"
    write_report(ReportData(run, None), tmp_path / "report.html")
    assert "This run started from gone/model, which is not there any more." in (tmp_path / "report.html").read_text()
    run = load_run(folder)
    run.settings["pretrained_model"], run.tokenizer["prefix"] = "", "rqvae/gone_8,8,8,8"
    write_report(ReportData(run, None), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for sentence in (
        "no metrics.jsonl with epochs",
        "no pre-training with several tokenizers",
        "semantic IDs that it was trained with are no longer there",
        "test_results_2.json is no longer there",
        "not recorded by this run",
    ):
        assert sentence in text


LOOK = """<script>addEventListener('load', () => { document.body.dataset.seen = JSON.stringify({
  broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).length,
  requests: performance.getEntriesByType('resource').map(entry => entry.name).filter(name => !name.startsWith('data:')),
  pictures: document.images.length, width: document.documentElement.scrollWidth, window: innerWidth}) })</script>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize("width", [500, 1280])
def test_browser_shows_it_without_error_request_or_sideways_scrolling(reports, tmp_path, width):
    page = tmp_path / "page.html"
    page.write_text(reports["pretrained"].read_text().replace("</body>", f"{LOOK}</body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [
        "--disable-component-update",
        "--no-first-run",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--enable-logging=stderr", f"--window-size={width},900", "--dump-dom"]
    result = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    seen = json.loads(re.search(r'data-seen="([^"]*)"', result.stdout)[1].replace("&quot;", '"'))
    assert seen == {"broken": 0, "requests": [], "pictures": len(PICTURES) + 1, "width": width, "window": width}
    assert [line for line in result.stderr.splitlines() if "CONSOLE" in line] == []
