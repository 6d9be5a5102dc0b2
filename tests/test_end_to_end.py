"""The tutorial's commands as they are written: from tables to a report, on a shop of 80 items."""

import csv
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
from tiny_runs import ROOT, project_beside, read_lines, read_results
from warm_python import VARIABLES, warm_environment

import finetune
import pretrain
import recommend
from data.interactions import load_interactions
from data.token_table import read_sem_ids, resolve_groups
from evaluation.run import load_run
from model.recommender import NETWORKS
from tokenizer import export, train
from tokenizer.kinds import KINDS

pytestmark = pytest.mark.slow

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
PRETRAINING, FINETUNING = "bash pretrain.sh", "bash finetune.sh $BATCHES"


def blocks() -> list[str]:
    """Return the tutorial's commands, block by block."""
    return re.findall(r"```bash\n(.*?)```", TUTORIAL, re.DOTALL)


def run(block: str, folder: Path, **environment: str) -> CompletedProcess:
    """Run a block in the folder, with the variables that the blocks before it set."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("DRY_RUN", "PRETRAINED", "REPORT")}
    python = warm_environment()
    inherited |= VARIABLES | {"VIRTUAL_ENV": str(python), "PATH": f"{python / 'bin'}:{os.environ['PATH']}"}
    script = f"set -ea\ntouch .variables\nsource ./.variables\n{block}\nset +x\nexport -p >.variables\n"
    command = ["bash", "-c", script]
    result = subprocess.run(
        command, cwd=folder, env=inherited | environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Run the tutorial in a folder of its own; then pre-training and fine-tuning again."""
    folder = project_beside(tmp_path_factory.mktemp("tutorial"))

    def times() -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns
            for path in (folder / "shop").rglob("*")
            if path.is_file() and path.name not in ("finetune.winner.json", "log.txt")
        }

    said = {block: run(block, folder) for block in blocks()}

    def find(command: str) -> str:
        return next(block for block in said if command in block)

    first, before = [said[find(PRETRAINING)], said[find(FINETUNING)]], times()
    again = [f"export REPORT=0\n{find(command)}" for command in (PRETRAINING, FINETUNING)]
    second = [run(block, folder) for block in again]
    texts = json.loads((folder / "shop" / "datasets" / "Shop" / "metadata.sentence.json").read_text())
    shown, recommended = said[find("python report.py")], said[find("python recommend.py")]
    after = times()
    return SimpleNamespace(
        folder=folder / "shop",
        texts=texts,
        first=first,
        second=second,
        before=before,
        after=after,
        shown=shown,
        recommended=recommended,
    )


def test_tables_become_the_dataset(chain):
    sample, dataset = (chain.folder / name / "Shop" for name in ("sample", "datasets"))
    before, after = (json.loads((folder / "all_item_seqs.json").read_text()) for folder in (sample, dataset))
    assert len(after) == 120
    for user, items in after.items():
        assert items == [item for item in dict.fromkeys(before[user]) if item in chain.texts]
    texts = json.loads((sample / "metadata.sentence.json").read_text())
    assert all(text.startswith(texts[item]) for item, text in chain.texts.items())


def test_tokenizer_leaves_what_pre_training_needs(chain):
    dataset = chain.folder / "datasets" / "Shop"
    assert (dataset / "tfidf.sent_emb").stat().st_size == len(chain.texts) * 32 * 4
    names = {path.name for path in (dataset / "rqvae").glob("*.sem_ids")}
    assert names == {f"tfidf_16,16,16,16{suffix}.sem_ids" for suffix in ("_18", "_19", "_20", "")}


def test_pre_training_leaves_what_fine_tuning_needs(chain):
    run = chain.folder / "runs" / "Shop" / "pretrain_tau1"
    results = read_results(run)
    assert [row["epoch"] for row in results["per_tokenizer"]] == [18, 19, 20]
    assert (results["best_epoch"], results["num_users"]) == (3, 120)
    assert [line["epoch"] for line in read_lines(run, "influence")] == [1, 2]
    assert (run / "checkpoints" / "epoch_3" / "model.safetensors").is_file()
    assert (run / "config.yaml").is_file()
    assert list(run.rglob("events.out.tfevents.*"))


def test_fine_tuning_prints_the_pairs_and_the_winners_test(chain):
    folder = chain.folder / "runs" / "Shop"
    selection = json.loads((folder / "finetune.winner.json").read_text())
    names = [f"finetune_best_{epoch}" for epoch in (19, 20)]
    assert [Path(row["run"]).name for row in selection["candidates"]] == names
    scores = {name: read_results(folder / name)["valid"]["ndcg@10"] for name in names}
    winner = Path(selection["winner"]["run"]).name
    assert scores[winner] == max(scores.values())
    assert selection["winner"]["test"] == read_results(folder / winner)["test"]

    said = chain.first[1]
    assert "the best epoch of pre-training (3) is fine-tuned" in said.stderr
    table = said.stdout[said.stdout.index("validation (the winner has the best ndcg@10)") :].splitlines()
    assert table[1].split()[:3] == ["run", "tokenizer", "epoch"]
    assert [line.split()[0] for line in table[2:4]] == names
    assert [line.split()[0] for line in table if line.endswith("<- winner")] == [winner]
    test = [f"{value:.4f}" for value in selection["winner"]["test"].values()]
    assert table[4].split() == ["test", "of", "the", "winner:", *test]
    assert table[5].startswith(f"winner: shop/runs/Shop/{winner}")


def test_fine_tuning_began_with_the_pre_trained_weights(chain):
    log = (chain.folder / "runs" / "Shop" / "finetune_best_20" / "log.txt").read_text()
    assert "weights from shop/runs/Shop/pretrain_tau1/model" in log


def test_second_call_reuses_everything(chain):
    assert chain.after == chain.before
    pretraining, finetuning = (result.stdout for result in chain.second)
    assert "pretrain_tau1 is already finished with these settings" in pretraining
    assert finetuning.count("is already finished with these settings") == 2
    first = chain.first[1].stdout
    start, end = first.index("validation (the winner"), first.index("Shop: 120 test users")
    assert finetuning.endswith(first[start:end])


def test_scripts_make_reports_and_print_their_paths(chain):
    runs = chain.folder / "runs" / "Shop"
    winner = Path(json.loads((runs / "finetune.winner.json").read_text())["winner"]["run"]).name
    for said, name in ((chain.first[0], "pretrain_tau1"), (chain.first[1], winner), (chain.shown, winner)):
        assert said.stdout.splitlines()[-1] == f"report: shop/runs/Shop/{name}/report.html"
        assert (runs / name / "report.html").is_file()
    assert not list(runs.glob("single_*/report.html"))  # REPORT=0


def test_tutorial_ends_with_users_and_baselines(chain):
    lines = chain.shown.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[3:6]] == [
        "Most popular items",
        "One tokenizer, no pre-training",
        next(line.split("  ")[0] for line in lines if line.startswith("MTGRec (finetune_best_")),
    ]
    assert len([line for line in lines if line.startswith("User ")]) == 2


def test_tutorial_recommends_new_items_to_everybody(chain):
    assert "U00002" in chain.recommended.stdout
    with open(chain.folder / "recommendations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 120 * 10
    sequences = json.loads((chain.folder / "datasets" / "Shop" / "all_item_seqs.json").read_text())
    assert not [row for row in rows if row["item"] in sequences[row["user"]]]


def example(title: str, folder: Path) -> Path:
    """Write the example under a heading of docs/extending.md into the folder, and return its file."""
    text = (ROOT / "docs" / "extending.md").read_text()
    code = re.search(r"```python\n(.*?)```", text[text.index(f"## {title}") :], re.DOTALL)[1]
    assert len(code.splitlines()) < 40
    file = folder / re.match(r'"""(\w+\.py):', code)[1]
    file.write_text(code)
    return file


@pytest.fixture
def in_the_shop(chain, tmp_path, monkeypatch) -> Path:
    """Work in the folder that the tutorial was run in; return one for files."""
    monkeypatch.chdir(chain.folder.parent)
    return tmp_path


SIZES = "--codebook_size=16 --num_layers=1 --num_decoder_layers=1 --d_model=16 --d_ff=32 --num_heads=2 --d_kv=8"
SHORT = f"--dataset=Shop --data_dir=shop/datasets --ckpt_dir=shop/runs {SIZES} --epochs=1 --warmup_steps=0".split()
SHORT += ["--num_beams=10", "--constrained=true", "--log_with=none"]


OF_KIND = {
    "rqkmeans": "--drift=0.3 --num_tokenizers=3",
    "neighbours": "--drift=0.3 --num_tokenizers=3 --sem_ids=shop/datasets/Shop/rqvae/tfidf_16,16,16,16_19.sem_ids",
    "letter": "--vq_type=vq --balance=sinkhorn --hidden_sizes=[32,8] --epochs=20 --save_last=3 --batch_size=64",
}


def make_tokenizers(kind: str) -> None:
    """Make semantic IDs of another kind beside the tutorial's, of the same embeddings; reuse what is there."""
    flags = f"--dataset=Shop --data_dir=shop/datasets --kind={kind} --ckpt_name={kind} --sent_emb_model=tfidf"
    flags += f" --sent_emb_dim=32 --sent_emb_pca=16 --codebook_size=16 {OF_KIND[kind]}"
    for command in (train, export):
        command.main(flags.split())


@pytest.mark.parametrize("kind", OF_KIND)
def test_every_kind_goes_from_texts_to_recommendations(in_the_shop, chain, kind):
    make_tokenizers(kind)
    prefix = f"{kind}/tfidf_16,16,16,16"
    epochs = [group.epoch for group in resolve_groups(chain.folder / "datasets" / "Shop", prefix)]
    assert epochs == ([18, 19, 20] if kind == "letter" else [1, 2, 3])
    run = [f"--token_prefix={prefix}", f"--sem_id_epochs={epochs[1]}", f"--run_name=with_{kind}"]
    finetune.main([*SHORT, *run, "--test_num_beams=10"])
    output = in_the_shop / "recommended.jsonl"
    recommend.main([f"--model=shop/runs/Shop/with_{kind}", "--users=U00001,U00002", "--k=5", f"--output={output}"])
    for row in map(json.loads, output.read_text().splitlines()):
        assert len(set(row["items"])) == 5
        assert set(row["items"]) <= set(chain.texts)


def test_kinds_mix_in_one_pre_training(in_the_shop, chain):
    """Epochs of the RQ-VAE, epochs of LETTER and neighbours of k-means, each drawn and scored for itself."""
    make_tokenizers("letter")
    make_tokenizers("rqkmeans")
    prefixes = [f"{kind}/tfidf_16,16,16,16" for kind in ("rqvae", "letter", "rqkmeans")]
    stages = ["--epochs=2", "--epoch_per_stage=[1]", "--val_delay=1", "--eval_interval=1"]
    pretrain.main([*SHORT, *stages, f"--token_prefix={json.dumps(prefixes)}", "--run_name=mixed"])
    run = chain.folder / "runs" / "Shop" / "mixed"
    labels = [f"{number}_{epoch}" for number in (0, 1) for epoch in (18, 19, 20)] + ["2_1", "2_2", "2_3"]
    (influence,) = read_lines(run, "influence")
    assert list(influence["influence"]) == labels
    assert load_run(run).labels == labels


def test_example_of_another_tokenizer(chain, in_the_shop, monkeypatch, capsys):
    text = (ROOT / "docs" / "extending.md").read_text()
    command = " ".join(re.search(r"`python residual_kmeans.py ([^`]*)`", text)[1].split()).split()
    monkeypatch.setitem(KINDS, "kmeans", None)  # the example puts its own there
    monkeypatch.setattr(sys, "argv", ["residual_kmeans.py", *command])
    file = example("Another tokenizer", in_the_shop)
    runpy.run_path(str(file), run_name="__main__")
    groups = resolve_groups(chain.folder / "datasets" / "Shop", "kmeans/tfidf_16,16,16,16")
    assert [group.epoch for group in groups] == [1, 2, 3]
    runpy.run_path(str(file), run_name="__main__")
    assert "kmeans: reused, a finished training with the same settings" in capsys.readouterr().out
    new = in_the_shop / "new.json"
    new.write_text(json.dumps({"novelty": next(iter(chain.texts.values()))}))
    export.main([*command, f"--assign={new}"])
    assert "semantic IDs for 1 new items" in capsys.readouterr().out
    names = load_interactions(chain.folder / "datasets" / "Shop").item_names[1:]
    codes = [read_sem_ids(group.file, names, (16,) * 4) for group in groups]
    assert 0 < (codes[0] != codes[2]).mean() < 0.5


def test_example_of_another_model(in_the_shop, monkeypatch, capsys):
    text = (ROOT / "docs" / "extending.md").read_text()
    command = re.search(r"`python causal.py ([^`]*)`", text)[1].split()
    monkeypatch.setattr(sys, "argv", ["causal.py", *command])
    monkeypatch.setitem(NETWORKS, "causal", None)  # the example puts its own there
    runpy.run_path(str(example("Another model", in_the_shop)), run_name="__main__")
    run = Path("shop/runs/Shop/causal")
    assert read_results(run)["num_users"] == 120
    assert json.loads((run / "model" / "config.json").read_text())["model_type"] == "causal"
    recommend.main(re.search(r"recommend\.main\(\)\" ([^`]*)`", text)[1].split())
    assert "U00001" in capsys.readouterr().out


def test_example_of_another_metric(chain, in_the_shop, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["coverage.py", "shop/runs/Shop/pretrain_tau1"])
    runpy.run_path(str(example("Another metric", in_the_shop)), run_name="__main__")
    rows = load_run(Path("shop/runs/Shop/pretrain_tau1")).user_results.items
    count = len({item for row in rows for item in row if item is not None})
    assert (
        capsys.readouterr().out
        == f"pretrain_tau1: {count} of {len(chain.texts)} items, {count / len(chain.texts):.1%}\n"
    )


def test_the_winner_recommends_anywhere(chain, tmp_path, capsys):
    """The model folder that fine-tuning left needs neither the run nor the dataset."""
    winner = json.loads((chain.folder / "runs/Shop/finetune.winner.json").read_text())["winner"]["run"]
    model = shutil.copytree(chain.folder.parent / winner / "model", tmp_path / "model")
    sequences = json.loads((chain.folder / "datasets/Shop/all_item_seqs.json").read_text())
    lines = [json.dumps({"user": user, "history": history}) for user, history in sequences.items()]
    (tmp_path / "users.jsonl").write_text("\n".join([*lines, '{"user": "new", "history": []}']))
    users, output = tmp_path / "users.jsonl", tmp_path / "out.jsonl"
    recommend.main([f"--model={model}", f"--users_file={users}", f"--output={output}"])
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["user"] for row in found] == [*sequences, "new"]
    items = set(chain.texts)
    for row in found:
        assert len(set(row["items"])) == 10
        assert set(row["items"]) <= items - set(sequences.get(row["user"], []))
    assert [row["source"] for row in found].count("most_popular") == 1

    new = {"novelty": next(iter(chain.texts.values()))}
    (tmp_path / "new.json").write_text(json.dumps(new))
    rqvae = chain.folder / "datasets" / "Shop" / "rqvae"
    flags = [f"--config_file={rqvae / 'config.yaml'}", f"--data_dir={chain.folder / 'datasets'}"]
    export.main([*flags, f"--assign={tmp_path / 'new.json'}"])
    capsys.readouterr()
    recommend.main(
        [f"--model={model}", f"--new_items={rqvae / 'new_items.json'}", "--history=novelty", f"--k={len(chain.texts)}"]
    )
    assert "1 items, the last 1" in capsys.readouterr().out
