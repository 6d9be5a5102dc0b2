"""From raw reviews to recommendations with the commands that people type, on a sample of 80 items."""

import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
from raw_files import START, Review, write_items, write_reviews
from tiny_runs import MODEL, read_lines, read_results, run_script

import recommend
from data import prepare as data_prepare
from data import sample
from tokenizer import export

pytestmark = pytest.mark.slow

TOKENIZER = (
    *(
        "--sent_emb_model=tfidf",
        "--sent_emb_dim=32",
        "--sent_emb_pca=16",
        "--codebook_size=16",
        "--hidden_sizes=[32,8]",
    ),
    *("--epochs=20", "--save_last=3", "--batch_size=64", "--device=cpu"),
)
SHARED = ("--gradient_accumulation_steps=1", "--train_batch_size=64", "--num_beams=10", "--eval_batch_size=256")
PRETRAIN = (
    *(f"--{name}={value}" for name, value in ({"codebook_size": 16} | MODEL).items()),
    *("--num_tokenizers=3", "--epochs=3", "--epoch_per_stage=[1,1]", "--warmup_steps=10", "--val_delay=2"),
)
FINETUNE = ("--epochs=2", "--sem_id_epochs=[19,20]", "--test_num_beams=10", "--log_with=none")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Run the chain from another folder; then run its training again."""
    folder = tmp_path_factory.mktemp("chain")
    environment = {"DATASET": "Shop", "DATA_DIR": "data", "CKPT_DIR": "runs", "TAU_LIST": "2", "NUM_GPUS": "1"}

    def run(script: str, *arguments: str) -> CompletedProcess:
        result = run_script(script, *arguments, folder=folder, **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        return result

    def train() -> list[CompletedProcess]:
        return [run("pretrain.sh", *SHARED, *PRETRAIN), run("finetune.sh", *SHARED, *FINETUNE)]

    def times() -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns
            for path in folder.rglob("*")
            if path.is_file() and path.name not in ("finetune.winner.json", "log.txt")
        }

    files = sample.make_sample(1, 120, 80)
    write_raw(folder / "raw", files)
    prepare = [f"--data_dir={folder / 'data'}", "--dataset=Shop", "--source=amazon2023", "--k_core=1"]
    prepare += [
        f"--interactions={folder / 'raw' / 'Shop.jsonl.gz'}",
        f"--items={folder / 'raw' / 'meta_Shop.jsonl.gz'}",
    ]
    data_prepare.main(prepare)
    run("tokenizer/run.sh", *TOKENIZER)
    first, before = train(), times()
    return SimpleNamespace(folder=folder, files=files, first=first, second=train(), before=before, after=times())


def write_raw(folder: Path, files: dict) -> None:
    """Write a sample dataset as the raw files of Amazon Reviews 2023, out of order."""
    folder.mkdir()
    reviews = [
        Review(user, item, START + 60 * place)
        for user, items in files["all_item_seqs.json"].items()
        for place, item in enumerate(items)
    ]
    write_reviews(folder, "2023", sorted(reviews, key=lambda review: (review.item, review.user)), [])
    write_items(folder, "2023", files["metadata.sentence.json"], [])


def test_raw_files_become_the_dataset(chain):
    dataset = chain.folder / "data" / "Shop"
    assert json.loads((dataset / "all_item_seqs.json").read_text()) == chain.files["all_item_seqs.json"]
    texts = json.loads((dataset / "metadata.sentence.json").read_text())
    assert texts.keys() == chain.files["metadata.sentence.json"].keys()
    assert all(texts[item].startswith(text) for item, text in chain.files["metadata.sentence.json"].items())


def test_tokenizer_leaves_what_pre_training_needs(chain):
    dataset = chain.folder / "data" / "Shop"
    assert (dataset / "tfidf.sent_emb").stat().st_size == 80 * 32 * 4
    names = {path.name for path in (dataset / "rqvae").glob("*.sem_ids")}
    assert names == {f"tfidf_16,16,16,16{suffix}.sem_ids" for suffix in ("_18", "_19", "_20", "")}


def test_pre_training_leaves_what_fine_tuning_needs(chain):
    run = chain.folder / "runs" / "Shop" / "pretrain_tau2"
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
    names = [f"finetune_best_{epoch}" for epoch in (19, 20)]  # no checkpoint of the row; the last epoch is the best
    assert [Path(row["run"]).name for row in selection["candidates"]] == names
    scores = {name: read_results(folder / name)["valid"]["ndcg@10"] for name in names}
    winner = Path(selection["winner"]["run"]).name
    assert scores[winner] == max(scores.values())
    assert selection["winner"]["test"] == read_results(folder / winner)["test"]

    said = chain.first[1]
    assert "pretrain_tau2 kept none of the epochs 90, 100, 110, 120: its best epoch (3) is fine-tuned" in said.stderr
    table = said.stdout[said.stdout.index("validation (the winner has the best ndcg@10)") :].splitlines()
    assert table[1].split()[:3] == ["run", "tokenizer", "epoch"]
    assert [line.split()[0] for line in table[2:4]] == names
    assert [line.split()[0] for line in table if line.endswith("<- winner")] == [winner]
    test = [f"{value:.4f}" for value in selection["winner"]["test"].values()]
    assert table[4].split() == ["test", "of", "the", "winner:", *test]
    assert table[5].startswith(f"winner: runs/Shop/{winner}")


def test_fine_tuning_began_with_the_pre_trained_weights(chain):
    log = (chain.folder / "runs" / "Shop" / "finetune_best_20" / "log.txt").read_text()
    assert "weights from runs/Shop/pretrain_tau2/model" in log


def test_second_call_reuses_everything(chain):
    assert chain.after == chain.before
    pretraining, finetuning = (result.stdout for result in chain.second)
    assert "pretrain_tau2 is already finished with these settings" in pretraining
    assert finetuning.count("is already finished with these settings") == 2
    first = chain.first[1].stdout
    assert finetuning.endswith(first[first.index("validation (the winner") :])


def test_the_winner_recommends_anywhere(chain, tmp_path, capsys):
    """The model folder that fine-tuning left needs neither the run nor the dataset."""
    winner = json.loads((chain.folder / "runs/Shop/finetune.winner.json").read_text())["winner"]["run"]
    model = shutil.copytree(chain.folder / winner / "model", tmp_path / "model")
    sequences = json.loads((chain.folder / "data/Shop/all_item_seqs.json").read_text())
    lines = [json.dumps({"user": user, "history": history}) for user, history in sequences.items()]
    (tmp_path / "users.jsonl").write_text("\n".join([*lines, '{"user": "new", "history": []}']))
    users, output = tmp_path / "users.jsonl", tmp_path / "out.jsonl"
    recommend.main([f"--model={model}", f"--users_file={users}", f"--output={output}"])
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["user"] for row in found] == [*sequences, "new"]
    items = set(chain.files["metadata.sentence.json"])
    for row in found:
        assert len(set(row["items"])) == 10
        assert set(row["items"]) <= items - set(sequences.get(row["user"], []))
    assert [row["source"] for row in found].count("most_popular") == 1

    new = {"novelty": next(iter(chain.files["metadata.sentence.json"].values()))}
    (tmp_path / "new.json").write_text(json.dumps(new))
    rqvae = chain.folder / "data" / "Shop" / "rqvae"
    flags = [f"--config_file={rqvae / 'config.yaml'}", f"--data_dir={chain.folder / 'data'}"]
    export.main([*flags, f"--assign={tmp_path / 'new.json'}"])
    capsys.readouterr()
    recommend.main([f"--model={model}", f"--new_items={rqvae / 'new_items.json'}", "--history=novelty", "--k=80"])
    assert "1 items, the last 1" in capsys.readouterr().out
