"""The tracker of a run, such as TensorBoard: its start, the settings, and the final metrics."""

from typing import Any

from accelerate import Accelerator

from training.config import TrainingConfig


def start_trackers(accelerator: Accelerator, config: TrainingConfig, first_step: int) -> None:
    """Start the tracker that `log_with` names, if any.

    Args:
        accelerator: Made with that tracker.
        config: Settings of the run.
        first_step: 1-based optimizer step at which the run goes on; 1 at its start.
    """
    if config.log_with == "none":
        return
    if config.log_with != "tensorboard":
        accelerator.init_trackers("mtgrec", plain_settings(config), {})
        return
    # TensorBoard takes the settings with the final metrics, and hides what an interrupted run logged from there on
    resumed = {"tensorboard": {"purge_step": first_step}} if first_step > 1 else {}
    accelerator.init_trackers("tensorboard", None, resumed)


def plain_settings(config: TrainingConfig) -> dict[str, int | float | str]:
    """Return the settings as trackers take them: numbers and strings."""
    return {name: value if isinstance(value, int | float | str) else str(value) for name, value in vars(config).items()}


def log_hyperparameters(accelerator: Accelerator, config: TrainingConfig, results: dict[str, Any]) -> None:
    """Write the settings and the final metrics for TensorBoard's table of runs (HPARAMS)."""
    final = {f"final/{split}_{name}": value for split in ("valid", "test") for name, value in results[split].items()}
    for tracker in accelerator.trackers if accelerator.is_main_process else ():
        if tracker.name == "tensorboard":
            tracker.writer.add_hparams(plain_settings(config), final, run_name=".")
