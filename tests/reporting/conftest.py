"""A pre-training, a run fine-tuned from it and one from scratch, all tiny, and what their tokenizers leave."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_dataset import make_dataset
from tiny_runs import flags

import finetune
import pretrain

PREFIX = "rqvae/toy_8,8,8,8"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of finished runs pretrained, tuned and single; read only."""
    folder = tmp_path_factory.mktemp("finished")
    dataset = make_dataset(folder / "datasets" / "Tiny", num_items=70, codebook_size=8)
    texts = {f"item{number}": f"<b>text</b> & $x_1$ of item{number}" for number in range(1, 71)}
    (dataset / "metadata.sentence.json").write_text(json.dumps(texts))
    np.random.default_rng(0).standard_normal((70, 6)).astype("<f4").tofile(dataset / "toy.sent_emb")
    lines = [{"epoch": epoch, "loss": 1.0, "codes_used": [4, 8, 8], "collision_rate": 0.1} for epoch in (1, 2, 3)]
    (dataset / "rqvae" / "metrics.jsonl").write_text("\n".join(map(json.dumps, [{"epoch": 0, "loss": 2.0}, *lines])))
    runs = folder / "runs"
    shared = {"token_prefix": PREFIX, "val_delay": 0}
    pretrain.main(
        flags(dataset, runs, run_name="pretrained", epochs=3, epoch_per_stage=[1, 1], save_interval=2, **shared)
    )
    model = runs / "Tiny" / "pretrained"
    shared |= {"sem_id_epochs": 2, "epochs": 2}
    finetune.main(flags(dataset, runs, model=False, run_name="tuned", pretrained_model=model, **shared))
    finetune.main(flags(dataset, runs, run_name="single", **shared))
    return runs / "Tiny"
