"""Pre-train the recommender on sequences tokenized by many tokenizers, with a curriculum (paper section 2.3).

    bash pretrain.sh                                                     the paper's settings
    python pretrain.py --dataset=Sample --codebook_size=64 --num_layers=1 --num_decoder_layers=1 --d_model=32 \\
        --epochs=2 --epoch_per_stage=[1,1] --val_delay=0 --warmup_steps=0    a minute on a CPU
"""

from training.config import PretrainConfig
from training.curriculum import current_probabilities, score_tokenizers, scores_tokenizers
from training.schedule import stage_ends
from training.setup import resolve_config, start_run
from training.trainer import Trainer
from utils.config import parse_config
from utils.runtime import run_command


def main(argv: list[str] | None = None) -> None:
    """Run pre-training; `argv` are the flags, by default the command line's."""
    config, given = parse_config(PretrainConfig, argv, "pretrain.py", __doc__)
    config, source = resolve_config(config, given)
    if config.run_name is None:
        config.run_name = default_run_name(config)
    trainer = start_run(config, source)
    if trainer is None:
        return
    with trainer.checkpointer.resumable():
        pretrain(trainer, config)
        trainer.test()


def pretrain(trainer: Trainer, config: PretrainConfig) -> None:
    """Train stage by stage; at the end of each, weigh the tokenizers anew for the next."""
    state, num_groups = trainer.state, trainer.data.table.num_groups
    ends, dropped = stage_ends(config.epoch_per_stage, trainer.epochs)
    if dropped:
        trainer.run.say(f"the stages {dropped} at the end do not fit into {trainer.epochs} epochs and are dropped")
    for stage, end in enumerate(ends, start=1):
        if stage <= state.stages:  # a resumed run has them behind it
            continue
        if state.epoch < end:
            trainer.run.say(f"stage {stage}/{len(ends)}: epochs {state.epoch + 1}..{end}")
        trainer.fit(end, current_probabilities(state, num_groups, config.tau))
        if state.stopped or end == trainer.epochs:
            return
        if config.load_best_for_next_stage and state.best_epoch:
            trainer.checkpointer.load_best()
        if scores_tokenizers(config, num_groups):
            score_tokenizers(trainer, stage)
        state.stages = stage


def default_run_name(config: PretrainConfig) -> str:
    """Return a readable name: how many tokenizers and layers, and how the tokenizers are sampled."""
    num_tokenizers = len(config.sem_id_epochs or [None])
    how = f"tau{config.tau:g}" if config.curriculum == "influence" else config.curriculum
    return f"pretrain_{num_tokenizers}tokenizers_{config.num_layers}layers_{how}_seed{config.rand_seed}"


if __name__ == "__main__":
    run_command(main)
