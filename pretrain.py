"""Pre-train the recommender on sequences tokenized by many tokenizers, with a curriculum (paper section 2.3).

    bash pretrain.sh                                                     the paper's settings
    python pretrain.py --dataset=Sample --codebook_size=64 --num_layers=1 --num_decoder_layers=1 --d_model=32 \\
        --epochs=2 --epoch_per_stage=[1,1] --val_delay=0 --warmup_steps=0    a minute on a CPU
"""

import time
from collections.abc import Callable

import numpy as np

from training import curriculum
from training.checkpointer import TrainingState
from training.config import PretrainConfig
from training.setup import resolve_config, start_run
from training.trainer import Trainer
from utils.config import parse_config
from utils.progress import duration
from utils.runtime import run_command


def main(argv: list[str] | None = None) -> None:
    """Run pre-training; `argv` are the flags, by default the command line's."""
    config, dataset = resolve_config(*parse_config(PretrainConfig, argv, "pretrain.py", __doc__))
    if config.run_name is None:
        config.run_name = default_run_name(config, len(dataset.groups))
    trainer = start_run(config, dataset)
    if trainer is None:
        return
    with trainer.resumable():
        pretrain(trainer, config)
        trainer.test()


def pretrain(trainer: Trainer, config: PretrainConfig) -> None:
    """Train stage by stage; at the end of each, weigh the tokenizers anew for the next."""
    state, num_groups = trainer.state, trainer.data.table.num_groups
    rule = curriculum.rule_of(config.curriculum, num_groups)
    ends, dropped = curriculum.stage_ends(config.epoch_per_stage, trainer.epochs)
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
        if rule:
            score_tokenizers(trainer, config, rule, stage)
        state.stages = stage


def score_tokenizers(trainer: Trainer, config: PretrainConfig, rule: Callable[..., np.ndarray], stage: int) -> None:
    """Score the tokenizers at the end of a 1-based stage, and tell what follows for the next one."""
    started, state, data = time.perf_counter(), trainer.state, trainer.data
    examples = curriculum.influence_positions(data.order, config.influence_sample_ratio), data.valid
    with trainer.checkpointer.frozen_state(), trainer.display.influence(stage) as advance:
        scores = rule(
            *(trainer.recommender, trainer.optimizer, data.tokenization, *examples, config.train_batch_size),
            *(trainer.accelerator, state.influence_parts, trainer.checkpointer.pause, advance),
        )
    state.influences.append(scores.tolist())
    state.learning_rates.append(trainer.learning_rate)
    state.influence_parts = []
    names, seconds = data.table.labels, time.perf_counter() - started
    probabilities = current_probabilities(state, len(names), config.tau)
    influence = dict(zip(names, scores.tolist(), strict=True))
    shares = dict(zip(names, probabilities.tolist(), strict=True))
    values = {"stage": stage, "epoch": state.epoch, "step": state.step, "learning_rate": trainer.learning_rate}
    tracked = {f"influence/{name}": score for name, score in influence.items()}
    tracked |= {f"sampling_probability/{name}": share for name, share in shares.items()}
    low, high = min(shares, key=shares.get), max(shares, key=shares.get)
    trainer.run.emit(
        "influence",
        values | {"seconds": seconds, "influence": influence, "probabilities": shares},
        tracked,
        state.step,
        f"stage {stage} is over after epoch {state.epoch}; influence estimated in {duration(seconds)}",
        f"  the next stage's sampling probabilities: lowest {shares[low]:.4f} (tokenizer {low}), "
        f"highest {shares[high]:.4f} (tokenizer {high}), uniform {1 / len(names):.4f}",
        f"  their entropy: {curriculum.entropy(probabilities):.4f}, uniform {np.log(len(names)):.4f}",
    )
    trainer.display.warn("curriculum", curriculum.curriculum_advice(probabilities, config.tau))


def current_probabilities(state: TrainingState, num_groups: int, tau: float) -> np.ndarray:
    """Return the sampling probabilities [G] after the stages so far; the first stage samples uniformly (2.3.2)."""
    if not state.influences:
        return np.full(num_groups, 1 / num_groups)
    scores = curriculum.accumulate_scores(np.array(state.influences), np.array(state.learning_rates))
    return curriculum.sampling_probabilities(scores, tau)


def default_run_name(config: PretrainConfig, num_tokenizers: int) -> str:
    """Return a readable name: how many tokenizers and layers, and how the tokenizers are sampled."""
    how = f"tau{config.tau:g}" if config.curriculum == "influence" else config.curriculum
    return f"pretrain_{num_tokenizers}tokenizers_{config.num_layers}layers_{how}_seed{config.rand_seed}"


if __name__ == "__main__":
    run_command(main)
