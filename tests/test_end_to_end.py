"""The three commands that people type, on a sample of 80 items."""

import json
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
from tiny_runs import MODEL, read_lines, read_results, run_script

from data import sample

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

    sample.main([f"--data_dir={folder / 'data'}", "--dataset=Shop", "--num_users=120", "--num_items=80"])
    run("tokenizer/run.sh", *TOKENIZER)
    first, before = train(), times()
    return SimpleNamespace(folder=folder, first=first, second=train(), before=before, after=times())


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
