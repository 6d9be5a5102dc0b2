"""Fine-tune a pre-trained recommender with one tokenizer, or train one from scratch (paper section 2.4).

bash finetune.sh                                                     the paper's settings
python finetune.py --dataset=Sample --pretrained_model=ckpt/Sample/pretrain_tau3 --sem_id_epochs=104
"""

import os
from pathlib import Path

import numpy as np

from data.interactions import item_texts
from inference.model_folder import complete_model_folder
from training.config import FinetuneConfig
from training.setup import resolve_config, start_run
from utils.config import parse_config
from utils.runtime import is_main_process, run_command


def main(argv: list[str] | None = None) -> None:
    """Run fine-tuning; `argv` are the flags, by default the command line's."""
    config, dataset = resolve_config(*parse_config(FinetuneConfig, argv, "finetune.py", __doc__))
    if config.run_name is None:
        config.run_name = default_run_name(config)
    # the run's model folder will hold every item's text
    trainer = start_run(config, dataset, lambda: item_texts(dataset.folder, dataset.interactions.item_names))
    if trainer is not None:
        num_groups = trainer.data.table.num_groups
        with trainer.resumable():
            trainer.fit(trainer.epochs, np.full(num_groups, 1 / num_groups))
            trainer.test()
    if is_main_process():
        complete_model_folder(Path(config.ckpt_dir) / config.dataset / config.run_name)


def default_run_name(config: FinetuneConfig) -> str:
    """Return a readable name: where the weights come from, and which tokenizers."""
    epochs = config.sem_id_epochs or ["best"]
    tokenizers = str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]}-{epochs[-1]}"
    if not config.pretrained_model:
        return f"scratch_{tokenizers}_seed{config.rand_seed}"
    path = Path(os.path.abspath(config.pretrained_model))  # "." and the like have no name of their own
    parts = [part for part in path.parts if part not in ("checkpoints", "model")]
    return f"finetune_{'_'.join(parts[-2:] if parts[-1].startswith('epoch_') else parts[-1:])}_{tokenizers}"


if __name__ == "__main__":
    run_command(main)
