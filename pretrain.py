"""Pre-train the recommender on sequences tokenized by many tokenizers, with a curriculum (paper section 2.3).

    bash pretrain.sh                                                     the paper's settings
    python pretrain.py --dataset=Sample --codebook_size=64 --num_layers=1 --num_decoder_layers=1 --d_model=32 \\
        --epochs=2 --epoch_per_stage=[1,1] --val_delay=0 --warmup_steps=0    a minute on a CPU
"""

import time

import numpy as np

from training.config import PretrainConfig
from training.curriculum import accumulate_scores, entropy, estimate_influence, sampling_probabilities
from training.schedule import stage_ends
from training.setup import influence_positions, resolve_config, start_run
from training.trainer import Progress, Trainer
from utils.advice import curriculum_advice
from utils.config import parse_config
from utils.progress import duration
from utils.runtime import run_command


def main(argv: list[str] | None = None) -> None:
    """Run pre-training; `argv` are the flags, by default the command line's."""
    config, given = parse_config(PretrainConfig, argv, "pretrain.py", __doc__)
    config = resolve_config(config, given)
    if config.run_name is None:
        num_tokenizers = len(config.sem_id_epochs or [None])
        how = f"tau{config.tau:g}" if config.curriculum == "influence" else "uniform"
        config.run_name = f"pretrain_{num_tokenizers}tokenizers_{config.num_layers}layers_{how}_seed{config.rand_seed}"
    trainer = start_run(config)
    if trainer is None:
        return
    run, data = trainer.run, trainer.data
    ends, dropped = stage_ends(config.epoch_per_stage, trainer.epochs)
    if dropped:
        run.say(f"the stages {dropped} at the end do not fit into {trainer.epochs} epochs and are dropped")
    num_groups, progress = len(trainer.groups), trainer.progress
    with trainer.resumable():
        for stage, end in enumerate(ends, start=1):
            if stage <= progress.stages:  # a resumed run has them behind it
                continue
            if progress.epoch < end:
                run.say(f"stage {stage}/{len(ends)}: epochs {progress.epoch + 1}..{end}")
            trainer.fit(end, probabilities_of(progress, num_groups, config.tau))
            if progress.stopped or end == trainer.epochs:
                break
            if config.load_best_for_next_stage and progress.best_epoch:
                trainer.load_best()
            if config.curriculum == "influence" and num_groups > 1:
                clock = time.perf_counter()
                with trainer.frozen_state(), trainer.live.influence(stage) as advance:
                    influence = estimate_influence(
                        trainer.recommender,
                        trainer.optimizer,
                        data.tokenization,
                        influence_positions(config, data.order),
                        data.valid,
                        config.train_batch_size,
                        trainer.accelerator,
                        progress.influence_parts,
                        trainer.pause,
                        advance,
                    )
                progress.influences.append(influence.tolist())
                progress.learning_rates.append(trainer.learning_rate)
                progress.influence_parts = []
                probabilities = probabilities_of(progress, num_groups, config.tau)
                report_stage(trainer, stage, influence, probabilities, time.perf_counter() - clock)
                trainer.live.warn("curriculum", curriculum_advice(probabilities, config.tau))
            progress.stages = stage
        trainer.test()


def probabilities_of(progress: Progress, num_groups: int, tau: float) -> np.ndarray:
    """Return the sampling probabilities [G] after the stages so far; the first stage samples uniformly."""
    if not progress.influences:
        return np.full(num_groups, 1 / num_groups)
    scores = accumulate_scores(np.array(progress.influences), np.array(progress.learning_rates))
    return sampling_probabilities(scores, tau)


def report_stage(
    trainer: Trainer, stage: int, influence: np.ndarray, probabilities: np.ndarray, seconds: float
) -> None:
    """Say, record and track a stage's influence scores [G] and the sampling probabilities [G] that follow from them."""
    names = trainer.data.tokenization.table.labels
    low, high = probabilities.argmin(), probabilities.argmax()
    for line in (
        f"stage {stage} is over after epoch {trainer.progress.epoch}; influence estimated in {duration(seconds)}",
        f"  the next stage's sampling probabilities: lowest {probabilities[low]:.4f} (tokenizer {names[low]}), "
        f"highest {probabilities[high]:.4f} (tokenizer {names[high]}), uniform {1 / len(names):.4f}",
        f"  their entropy: {entropy(probabilities):.4f}, uniform {np.log(len(names)):.4f}",
    ):
        trainer.run.say(line)
    trainer.run.record(
        "influence",
        stage=stage,
        epoch=trainer.progress.epoch,
        step=trainer.progress.step,
        learning_rate=trainer.learning_rate,
        seconds=seconds,
        influence=dict(zip(names, influence.tolist(), strict=True)),
        probabilities=dict(zip(names, probabilities.tolist(), strict=True)),
    )
    values = {f"influence/{name}": float(value) for name, value in zip(names, influence, strict=True)}
    values |= {f"sampling_probability/{name}": float(p) for name, p in zip(names, probabilities, strict=True)}
    trainer.accelerator.log(values, step=trainer.progress.step)


if __name__ == "__main__":
    run_command(main)
