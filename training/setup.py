"""What pre-training and fine-tuning start with: settings, processes, data, model, run folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from data.advice import judge_tokenizer
from data.interactions import dataset_folder
from data.token_table import Vocabulary, check_semantic_ids, level_sizes, resolve_groups
from evaluation.run import ENVIRONMENT_FILE, RESULTS_FILE, trained_identifiers
from model.recommender import (
    Architecture,
    Recommender,
    build_recommender,
    find_model_folder,
    load_recommender,
    read_architecture,
)
from model.reference_checkpoint import read_reference_checkpoint, sizes_of_weights
from training.checkpointer import STATE_FOLDER
from training.config import ARCHITECTURE_FLAGS, TrainingConfig
from training.data import Data, Source, load_data
from training.run_folder import RunFolder, start_tracker
from training.trainer import Trainer
from utils.claims import Claim
from utils.config import expand_epochs
from utils.errors import InputError
from utils.files import read_json, write_json
from utils.runtime import describe_environment, join_processes, seed_everything
from utils.snapshots import newest_snapshot, read_snapshot, read_values

# Settings that a resumed run may change: how long, where to, how often; none changes what a step computes, but for
# `epochs`, on whose number the learning rates of the steps to come depend.
RESUMABLE_CHANGES = (
    *("epochs", "patience", "save_interval", "checkpoint_minutes", "gradient_accumulation_steps"),
    *("data_dir", "ckpt_dir", "results_dir", "log_dir", "log_with", "tensorboard_log_dir"),
)

# Settings in which a finished run may differ and still be the one that is asked for: where it lies, how it was watched.
FINISHED_CHANGES = ("checkpoint_minutes", "data_dir", "ckpt_dir", "log_dir", "log_with", "tensorboard_log_dir")

ConfigType = TypeVar("ConfigType", bound=TrainingConfig)
Answer = TypeVar("Answer")


def resolve_config(config: ConfigType, given: set[str]) -> tuple[ConfigType, Source]:
    """Find what the settings name: the dataset, its tokenizers, and the architecture of the pre-trained model.

    Returns the settings with tokenizers and architecture filled in, and what is to be trained on. Raises InputError
    where one of the three is absent, or where a flag that was `given`, rather than defaulted, contradicts the model.
    """
    folder = dataset_folder(config.data_dir, config.dataset)
    epochs = expand_epochs(config.sem_id_epochs)
    groups = resolve_groups(folder, config.token_prefix, epochs, config.token_suffix, config.num_tokenizers)
    prefixes = list(dict.fromkeys(group.prefix for group in groups))
    if len({tuple(group.epoch for group in groups if group.prefix == prefix) for prefix in prefixes}) > 1:
        raise InputError(f"the tokenizers {' '.join(prefixes)} have different epochs; choose some with --sem_id_epochs")
    numbered = [group.epoch for group in groups if group.prefix == prefixes[0] and group.epoch is not None]
    config = replace(
        config,
        token_prefix=prefixes[0] if len(prefixes) == 1 else prefixes,
        sem_id_epochs=numbered or None,
        num_tokenizers=None,
    )
    if config.pretrained_model:
        config = _take_architecture(config, given)
    vocabulary = Vocabulary(level_sizes(config.n_codebooks, config.codebook_size), config.n_user_tokens)
    return config, Source(folder, groups, vocabulary)


def _take_architecture(config: ConfigType, given: set[str]) -> ConfigType:
    """Take over the pre-trained model's architecture; raise InputError where a `given` flag contradicts it."""
    fixed = _fixed_by_model(config)
    written = {name: getattr(config, name) for name in ARCHITECTURE_FLAGS if name in given and name in fixed}
    meant = dict(written)
    if "codebook_size" in written:  # 256 and a list may mean the same
        meant["codebook_size"] = list(level_sizes(fixed["n_codebooks"], config.codebook_size))
    contradicting = [
        f"{name}={value} (the model has {fixed[name]})" for name, value in written.items() if meant[name] != fixed[name]
    ]
    if contradicting:
        raise InputError(
            f"flags contradict the pre-trained model {config.pretrained_model}: {'; '.join(contradicting)}; "
            "leave them out"
        )
    return replace(config, **fixed)


def _fixed_by_model(config: TrainingConfig) -> dict:
    """Return the flags that the pre-trained model settles, with their values."""
    path = Path(config.pretrained_model)
    if not path.exists():
        raise InputError(f"--pretrained_model={path} does not exist; leave the flag out to train from scratch")
    if path.is_file():
        sizes = sizes_of_weights(read_reference_checkpoint(path))
        vocab_size = sizes.pop("vocab_size")
        expected = Vocabulary(level_sizes(config.n_codebooks, config.codebook_size), config.n_user_tokens).size
        if vocab_size != expected:
            raise InputError(
                f"{path} has a vocabulary of {vocab_size} tokens; n_codebooks={config.n_codebooks}, "
                f"codebook_size={config.codebook_size} and n_user_tokens={config.n_user_tokens} make {expected}"
            )
        return sizes
    architecture = read_architecture(find_model_folder(path))
    sizes = {name: getattr(architecture, name) for name in ARCHITECTURE_FLAGS if hasattr(architecture, name)}
    levels = list(architecture.level_sizes)
    return {**sizes, "n_codebooks": len(levels) - 1, "codebook_size": levels}


def start_run(
    config: ConfigType, source: Source, check: Callable[[Source], None] = lambda source: None
) -> Trainer | None:
    """Make everything that training needs; the run's folder comes last, when nothing can be wrong any more.

    `check` raises InputError where the source lacks what the command needs later, as is raised where the folder holds
    another run, or the data or the model cannot be read. None is returned where the run is finished and --reuse is set.
    """
    path = Path(config.ckpt_dir) / config.dataset / config.run_name
    accelerator = start_accelerator(config, path)
    log_file = Path(config.log_dir) / f"{config.dataset}_{config.run_name}.log" if config.log_dir else path / "log.txt"
    run = RunFolder(
        path, accelerator.is_main_process, log_file, lambda values, step: accelerator.log(values, step=step)
    )
    answer = on_main_process(lambda: may_start(run, config, source, accelerator.num_processes), accelerator)
    if answer == "reuse":
        accelerator.print(f"{run.path} is already finished with these settings")
        return None
    seed_everything(config.rand_seed, config.reproducibility)
    data = load_data(config, source, accelerator)
    check(source)
    recommender = make_recommender(config)
    if not config.allow_other_identifiers:
        remedy = "choose tokenizers of its training, or start from it all the same with --allow_other_identifiers"
        check_semantic_ids(recommender.semantic_ids_sha256, data.table, config.pretrained_model, remedy)
    recommender.semantic_ids_sha256 = data.table.sha256
    state = on_main_process(lambda: claim_folder(run, config, data, accelerator), accelerator)
    snapshot = read_snapshot(state) if state else None
    start_tracker(accelerator, config, 1 + snapshot.values["progress"]["step"] if snapshot else 1)
    warnings = [f"warning: {line}" for line in judge_tokenizer(data.table)]
    for line in describe(config, data, recommender, accelerator) + warnings:
        run.say(line)
    return Trainer(config, accelerator, run, data, recommender, snapshot)


def start_accelerator(config: TrainingConfig, path: Path) -> Accelerator:
    """Meet the other processes, with the precision and the tracker of the settings, for the run's folder `path`."""
    tracker = None if config.log_with == "none" else config.log_with
    tracker_folder = Path(config.tensorboard_log_dir) / config.run_name if config.tensorboard_log_dir else path
    try:
        accelerator, _ = join_processes(
            remedy="lower NUM_GPUS, or set CPU=1 for processes on the CPU",
            mixed_precision=config.mixed_precision,
            log_with=tracker,
            project_dir=str(tracker_folder),
        )
    except InputError:
        raise
    except ValueError as error:
        settings = f"--log_with={config.log_with} --mixed_precision={config.mixed_precision}"
        raise InputError(f"Accelerate does not start here with {settings}: {error}") from None
    if tracker and not accelerator.log_with:
        raise InputError(f"--log_with={tracker} is not installed; install it, or choose tensorboard or none")
    return accelerator


def may_start(run: RunFolder, config: TrainingConfig, source: Source, num_processes: int) -> Claim:
    """Return what is to be done in the folder, as RunFolder.check; it is reused on any number of processes."""
    results = run.path / RESULTS_FILE
    batch = config.train_batch_size * num_processes * config.gradient_accumulation_steps
    same_batch = results.is_file() and read_json(results).get("global_batch_size") == batch
    finished_change = (*FINISHED_CHANGES, "gradient_accumulation_steps") if same_batch else FINISHED_CHANGES
    answer = run.check(config, RESUMABLE_CHANGES, finished_change)
    if answer == "reuse" and (trained_with := trained_identifiers(run.path)) and trained_with != source.table.sha256:
        raise InputError(
            f"{run.path} holds a finished run with other semantic IDs of the same name: the tokenizer was trained "
            "again since; set another RUN_NAME (--run_name), or start anew with --overwrite"
        )
    return answer


def claim_folder(run: RunFolder, config: TrainingConfig, data: Data, accelerator: Accelerator) -> Path | None:
    """Lock the run's folder and make it ready; return the saved state to go on from, None where the run starts anew.

    Raises InputError where another process has the folder, or what is there may not be resumed.
    """
    run.lock()
    try:
        if run.check(config, RESUMABLE_CHANGES) == "reuse":  # another run has had the folder since
            raise InputError(f"{run.path} was finished by another process meanwhile; start again to reuse it")
        state, notes = newest_snapshot(run.path / STATE_FOLDER) if config.resume else (None, [])
        if state:
            values = read_values(state)
            check_resumable(values, config, data)
            run.reopen(config, values["metrics_size"])
        else:
            run.create(config)
            notes = [f"{run.path} has no saved state to resume: starting anew"] if config.resume else []
    except BaseException:
        run.unlock()
        raise
    for note in notes:
        run.say(note)
    if not state:
        write_json(run.path / ENVIRONMENT_FILE, describe_environment(accelerator.device, accelerator.num_processes))
    return state


def check_resumable(values: dict, config: TrainingConfig, data: Data) -> None:
    """Raise InputError if a saved state's values do not fit the data or the settings that may have changed."""
    progress, batch = values["progress"], data.order.global_batch_size
    problems = [f"{name} changed" for name, there in values["data"].items() if data.fingerprint.get(name) != there]
    if values["global_batch_size"] != batch:
        problems.append(
            f"its global batch was {values['global_batch_size']}, now {batch}, which would change the order of the "
            "data: set --gradient_accumulation_steps so that batch x processes x accumulation stays"
        )
    begun = -(-progress["step"] // data.order.steps_per_epoch)
    if config.epochs < begun and not config.steps:
        problems.append(f"epochs={config.epochs}, but epoch {begun} has begun")
    if config.epochs > progress["epoch"] and progress["testing"] and not (config.steps or progress["stopped"]):
        problems.append(f"epochs={config.epochs}, but its test after epoch {progress['epoch']} has begun")
    if problems:
        raise InputError(f"the run {config.run_name} cannot be resumed: {'; '.join(problems)}")


def on_main_process(question: Callable[[], Answer], accelerator: Accelerator) -> Answer:
    """Answer a question about files on the main process and share the answer, or its InputError, with all."""
    answer, problem = None, None
    if accelerator.is_main_process:
        try:
            answer = question()
        except InputError as error:
            problem = str(error)
    answer, problem = broadcast_object_list([answer, problem])
    if problem:
        raise InputError(problem)
    return answer


def make_recommender(config: TrainingConfig) -> Recommender:
    """Make the network from scratch, or read the pre-trained one; `config` has been resolved."""
    path = Path(config.pretrained_model)
    if config.pretrained_model and path.is_dir():
        return load_recommender(find_model_folder(path), dropout_rate=config.dropout_rate)
    sizes = {name: getattr(config, name) for name in ARCHITECTURE_FLAGS if name in Architecture.__dataclass_fields__}
    levels = level_sizes(config.n_codebooks, config.codebook_size)
    recommender = build_recommender(Architecture(levels, dropout_rate=config.dropout_rate, **sizes))
    if config.pretrained_model:
        recommender.load_weights(read_reference_checkpoint(path), str(path))
    return recommender


def describe(config: TrainingConfig, data: Data, recommender: Recommender, accelerator: Accelerator) -> list[str]:
    """Return what a person wants to know before the run starts, a line each."""
    interactions, table, order = data.tokenization.interactions, data.table, data.order
    prefixes = ", ".join(dict.fromkeys(group.prefix for group in table.groups))
    return [
        f"dataset {config.dataset}: {interactions.num_users:,} users, {interactions.num_items:,} items, "
        f"{len(order.positions):,} training examples",
        f"tokenizers ({table.num_groups}) of {prefixes}: {', '.join(table.labels)}",
        f"model: {config.num_layers} + {config.num_decoder_layers} layers, d_model {config.d_model}, "
        f"{sum(p.numel() for p in recommender.parameters()):,} parameters, "
        f"weights from {config.pretrained_model or 'scratch'}",
        f"global batch {order.global_batch_size:,} = {config.train_batch_size} x {accelerator.num_processes} processes "
        f"x {config.gradient_accumulation_steps} batches, {order.steps_per_epoch} steps an epoch, "
        f"on {accelerator.device}",
    ]
