"""Run the commands that people type on a small sample, one after another, on the device.

    python -m benchmarks.gpu_commands --device=cuda --output=commands.json

It looks whether they end well; what they compute is compared in tests/cuda/. The exit code is 1 where one failed.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import DeviceConfig
from utils.config import parse_config
from utils.files import write_json
from utils.runtime import run_command

TEXTS = "--sent_emb_model=tfidf --sent_emb_dim=32 --sent_emb_pca=16 --codebook_size=32"
RQVAE = "--epochs=40 --hidden_sizes=[64,32] --steps_per_epoch=4 --num_tokenizers=5 --drift=0.3 --scheduler_type=linear"
LETTER = "--kind=letter --vq_type=vq --balance=sinkhorn --ckpt_name=letter --epochs=9 --save_last=2 --hidden_sizes=[8]"
MODEL = "--codebook_size=32 --num_layers=1 --num_decoder_layers=1 --d_model=32 --d_ff=64 --num_heads=2 --d_kv=16"
BEAMS = "--num_beams=10 --test_num_beams=10"
PRETRAINING = "--run_name=pretrained --epochs=2 --epoch_per_stage=[1,1] --val_delay=1 --num_tokenizers=5"


def commands(folder: Path, device: str) -> list[str]:
    """Return the commands, each a module and its flags, in an order in which they find what they need."""
    data = f"--dataset=Sample --data_dir={folder}"
    runs = f"{data} --ckpt_dir={folder}/ckpt"
    pretrained, run = (f"{folder}/ckpt/Sample/{name}" for name in ("pretrained", "finetuned"))
    on = f"--device={device}"
    return [
        f"data.sample {data} --num_users=200 --num_items=100",
        *(f"tokenizer.{step} {data} {TEXTS} {RQVAE} {on}" for step in ("embed", "train", "export")),
        *(f"tokenizer.{step} {data} {TEXTS} {LETTER} {on}" for step in ("train", "export")),
        f"pretrain {runs} {MODEL} {BEAMS} {PRETRAINING}",
        f"finetune {runs} {MODEL} {BEAMS} --run_name=finetuned --epochs=2 --pretrained_model={pretrained}",
        f"evaluate --model={run} --data_dir={folder} --constrained=[false,true] --num_beams=10 --output={folder} {on}",
        f"recommend --model={run} --data_dir={folder} --all_users --output={folder}/items.jsonl {on}",
        f"baseline {runs} --method=sasrec --epochs=2 --d_model=16 {on}",
    ]


def main(argv: list[str] | None = None) -> None:
    """Run them; exit with 1 where one failed."""
    config, _ = parse_config(DeviceConfig, argv, "python -m benchmarks.gpu_commands", __doc__)
    environment = os.environ | ({"ACCELERATE_USE_CPU": "true"} if config.device == "cpu" else {})
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for command in commands(Path(scratch), config.device):
            print(f"$ python -m {command}", flush=True)
            started = time.perf_counter()
            code = subprocess.run([sys.executable, "-m", *command.split()], env=environment, check=False).returncode
            seconds = round(time.perf_counter() - started, 1)
            rows.append({"command": command.replace(scratch, "."), "seconds": seconds, "exit_code": code})
            if config.output:
                write_json(Path(config.output), rows)
    if failed := [row["command"].split()[0] for row in rows if row["exit_code"]]:
        sys.exit(f"error: failed: {', '.join(failed)}")


if __name__ == "__main__":
    run_command(main)
