import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from evaluation.compare import bootstrap_over_users
from evaluation.results import Results
from evaluation.run import Run
from inference.model_card import name_on_hub
from inference.model_folder import export_model

QUALITY = {"collision_rate": 0.25, "largest_group": 3, "codes_used": [8, 7, 6], "perplexity": [7.0, 6.0, 5.0]}


def card_of(run: Path, folder: Path) -> str:
    export_model(run, folder)
    return (folder / "README.md").read_text()


@pytest.fixture
def full_run(joint_run: Path, dataset: Path) -> Path:
    """Add to the run what a real one has: results per user, and its tokenizer's records."""
    results = json.loads((joint_run / "results.json").read_text())
    (joint_run / "results.json").write_text(json.dumps(results | {"num_users": 4}))
    settings = yaml.safe_load((joint_run / "config.yaml").read_text())
    settings |= {"num_beams": 10, "test_num_beams": 50, "constrained": False, "pretrained_model": "", "lr": 0.002}
    (joint_run / "config.yaml").write_text(yaml.safe_dump(settings))
    items = [["item1", "item2"], ["item1", None], ["item3", "item1"], ["item1", "item2"]]
    users = ["user2", "user3", "user4", "user5"]
    items = [[*row, *[None] * 8] for row in items]
    Results(users, items, [[-1.0] * 10] * 4, ["item1", "item9", "item1", "item8"]).save(
        joint_run / "test_results_2.json"
    )
    (dataset / "rqvae" / "training.json").write_text(json.dumps({"settings": {"sent_emb_model": "tfidf"}}))
    quality = {"codebook_sizes": [8, 8, 8], "tokenizers": {"1": {}, "2": QUALITY}}
    (dataset / "rqvae" / "quality.json").write_text(json.dumps(quality))
    return joint_run


def test_hubs_read_the_card(full_run: Path, tmp_path: Path):
    text = card_of(full_run, tmp_path / "out")
    card = ModelCard(text, ignore_metadata_errors=False)
    assert card.data.library_name == "mtgrec"
    assert card.data.license is None
    assert card.data.tags[-1] == "t5"
    (result,) = card.data.eval_results
    assert (card.data.model_name, result.dataset_type, result.dataset_name) == ("joint", "tiny", "Tiny")
    assert (result.metric_type, result.metric_name, result.metric_value) == ("ndcg@10", "NDCG@10", 0.3)
    assert (result.task_type, result.dataset_split) == ("sequential-recommendation", "test")
    again = ModelCardData(**yaml.safe_load(card.data.to_yaml()))
    assert again.eval_results == card.data.eval_results
    named = ModelCard(text.replace("# license: name one here and remove the # ", "license: mit  # "))
    assert named.data.license == "mit"


def test_the_card_says_what_is_known(full_run: Path, tmp_path: Path):
    text = card_of(full_run, tmp_path / "out")
    interval = bootstrap_over_users(Run(full_run).user_results.per_user(["ndcg@10"]))[0]
    assert interval.mean == pytest.approx((1 + 1 / np.log2(3)) / 4)
    popularity = sum(json.loads(line)["popularity"] for line in (tmp_path / "out" / "items.jsonl").open())
    for line in (
        "| items | 20 |",
        f"| interactions before everybody's last two | {popularity} |",
        "| users in the test | 4 |",
        "A semantic ID has 4 levels, with 8, 8, 8, 8 codes. The last level only tells apart items",
        "- Made of the items' texts: encoder `tfidf`, tokenizer of kind `rqvae`, epoch 2 of its training.",
        "- 25.0% of the items share all other codes with another item. The largest such group has 3 items.",
        "- Codes in use on each level: 8 of 8, 7 of 8, 6 of 8.",
        "Trained from scratch, without pre-training.",
        "The weights are those of epoch 1, the best on validation by ndcg@10.",
        "| `lr` | 0.002 |",
        "items before it as history. 50 beams, which were free to end at no item.",
        f"| NDCG@10 | 0.3000 | {interval.low:.4f} to {interval.high:.4f} |",
        "The first 10 recommendations of all test users together show 3 of the items.",
        "- It recommends the 20 items in `items.jsonl`, and no others. New items need semantic IDs first",
    ):
        assert line in text.splitlines(), line
    assert "nan" not in text


def test_the_card_tells_one_training_from_another(full_run: Path, dataset: Path, tmp_path: Path):
    quality = {"codebook_sizes": [8, 8, 8], "tokenizers": {"2": QUALITY | {"collision_rate": 0.0, "largest_group": 1}}}
    (dataset / "rqvae" / "quality.json").write_text(json.dumps(quality))
    settings = yaml.safe_load((full_run / "config.yaml").read_text())

    def card(**others: object) -> list[str]:
        (full_run / "config.yaml").write_text(yaml.safe_dump(settings | others))
        return card_of(full_run, tmp_path / "out").splitlines()

    assert "- No two items share all other codes." in card()
    pretraining = {"epoch_per_stage": [1, 1], "tau": 3.0}
    assert "Pre-trained with 2 tokenizers (`tau` 3.0), and not fine-tuned." in card(**pretraining)
    alike = card(**pretraining, curriculum="uniform", train_user_ratio=0.25)
    assert "Pre-trained with 2 tokenizers (all drawn equally often), and not fine-tuned." in alike
    assert "| users that it learnt from | 25.0% |" in alike
    shutil.copytree(full_run, full_run.parent / "first")
    text = card(pretrained_model=str(full_run.parent / "first" / "model"))
    assert "Pre-trained with 2 tokenizers (all drawn equally often), then fine-tuned." in text
    assert "Fine-tuned from another model. How that one was trained is not recorded here." in card(
        pretrained_model="gone"
    )


def test_the_card_says_what_is_not_known(full_run: Path, dataset: Path, tmp_path: Path):
    (full_run / "test_results_2.json").unlink()
    (dataset / "rqvae" / "quality.json").unlink()
    (dataset / "rqvae" / "training.json").unlink()
    text = card_of(full_run, tmp_path / "out")
    assert "| NDCG@10 | 0.3000 |\n" in text
    assert "There are no intervals: the results per user were not there when this page was written." in text
    assert "- It is `rqvae/toy_8,8,8,8_2`. How it was made is not recorded." in text
    assert "- No report on its quality was there." in text
    shutil.copytree(full_run / "model", full_run / "checkpoints" / "epoch_5")
    card = ModelCard(card_of(full_run / "checkpoints" / "epoch_5", tmp_path / "checkpoint"))
    assert "These weights were not tested." in card.text
    assert "of epoch 1" not in card.text
    assert card.data.eval_results is None


def test_how_to_load_is_six_lines_that_run(joint_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    text = (card_of(joint_run, tmp_path / "out")).replace("hf:user/name", str(tmp_path / "out"))
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert len(code.splitlines()) == 6
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert all(re.fullmatch(r"-\d+\.\d\d (item\d+) text of \1", line) for line in lines)


def test_an_old_complete_folder_gets_a_card(joint_run: Path, tmp_path: Path):
    card_of(joint_run, tmp_path / "old" / "a" / "b")
    (tmp_path / "old" / "a" / "b" / "README.md").unlink()
    text = card_of(tmp_path / "old" / "a" / "b", tmp_path / "new")
    assert "# Tiny: recommendations for Tiny\n" in text
    assert "| NDCG@10 | 0.3000 |\n" in text


def test_a_push_names_the_model_and_leaves_what_the_user_wrote(joint_run: Path, tmp_path: Path):
    written = card_of(joint_run, tmp_path / "out")
    edited = "Load hf:user/name. Fine-tuned from hf:acme/base-model. Compare hf:acme/other@v2; no hf:user/name2.\r\n"
    edited += "python recommend.py --model=hf:acme/other --history=A\r\n"
    card = tmp_path / "out" / "README.md"
    card.write_bytes((edited + written).encode())
    for name in ("ann/shop", "ann/shop-2.1"):
        name_on_hub(tmp_path / "out", name)
        expected = edited.replace("hf:user/name.", "hf:ann/shop.") + written.replace("hf:user/name", f"hf:{name}")
        assert card.read_bytes().decode() == expected
    assert expected.count("hf:ann/shop-2.1") == 2
