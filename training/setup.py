"""What pre-training and fine-tuning start with: settings, processes, data, model, run folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from data.advice import judge_tokenizers
from data.interactions import dataset_folder
from data.token_table import Vocabulary, check_semantic_ids, flags_of_tokenizers, level_sizes, resolve_groups
from evaluation.run import ENVIRONMENT_FILE
from model.recommender import (
    Architecture,
    Recommender,
    build_recommender,
    load_recommender,
    read_architecture,
    weights_file,
)
from model.reference_checkpoint import read_reference_checkpoint, sizes_of_weights
from training.config import ARCHITECTURE_FLAGS, SIZE_FLAGS, TrainingConfig
from training.data import Data, Dataset, load_data
from training.run_folder import RunFolder, start_tracker
from training.trainer import Trainer
from utils.config import expand_epochs
from utils.errors import InputError
from utils.files import write_json
from utils.hub import local_folder
from utils.runtime import describe_environment, join_processes, seed_everything
from utils.snapshots import newest_snapshot, read_snapshot, read_values

ConfigType = TypeVar("ConfigType", bound=TrainingConfig)
Answer = TypeVar("Answer")


def resolve_config(config: ConfigType, given: set[str]) -> tuple[ConfigType, Dataset]:
    """Find what the settings name: the dataset, its tokenizers, and the architecture of the pre-trained model.

    Returns the settings with tokenizers and architecture filled in, and what is to be trained on. Raises InputError
    where one of the three is absent, or where a flag that was `given`, rather than defaulted, contradicts the model.
    """
    folder = dataset_folder(config.data_dir, config.dataset)
    epochs = expand_epochs(config.sem_id_epochs)
    groups = resolve_groups(folder, config.token_prefix, epochs, config.token_suffix, config.num_tokenizers)
    prefixes, numbered = flags_of_tokenizers((group.prefix, group.epoch) for group in groups)
    prefix = prefixes[0] if len(prefixes) == 1 else prefixes
    config, weights = replace(config, token_prefix=prefix, sem_id_epochs=numbered, num_tokenizers=None), None
    if config.pretrained_model:
        config = replace(config, pretrained_model=str(local_folder(config.pretrained_model)))
        config = _take_architecture(config, given)
        weights = weights_file(Path(config.pretrained_model))
    return config, Dataset(folder, groups, vocabulary_of(config), weights)


def vocabulary_of(config: TrainingConfig) -> Vocabulary:
    """Return the layout of the tokens that the settings describe."""
    return Vocabulary(level_sizes(config.n_codebooks, config.codebook_size), config.n_user_tokens)


def _take_architecture(config: ConfigType, given: set[str]) -> ConfigType:
    """Take over the pre-trained model's architecture; raise InputError where a `given` flag contradicts it."""
    fixed, contradicting = _fixed_by_model(config), []
    for name in ARCHITECTURE_FLAGS:
        if name in given and name in fixed:
            written = meant = getattr(config, name)
            if name == "codebook_size":  # 256 and a list may mean the same
                meant = list(level_sizes(fixed["n_codebooks"], written))
            if meant != fixed[name]:
                contradicting.append(f"{name}={written} (the model has {fixed[name]})")
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
        expected = vocabulary_of(config).size
        if vocab_size != expected:
            raise InputError(
                f"{path} has a vocabulary of {vocab_size} tokens; n_codebooks={config.n_codebooks}, "
                f"codebook_size={config.codebook_size} and n_user_tokens={config.n_user_tokens} make {expected}"
            )
        return sizes
    architecture = read_architecture(path)
    levels = list(architecture.level_sizes)
    sizes = {name: getattr(architecture, name) for name in SIZE_FLAGS}
    return {**sizes, "n_codebooks": len(levels) - 1, "codebook_size": levels}


def start_run(config: TrainingConfig, dataset: Dataset, check: Callable[[], Any] = lambda: None) -> Trainer | None:
    """Make everything that training needs; the run's folder comes last, when nothing can be wrong any more.

    `check` raises InputError where the dataset lacks what the command needs later, as is raised where the folder holds
    another run, or the data or the model cannot be read. It is None where the run is finished and --reuse is set.
    """
    path = Path(config.ckpt_dir) / config.dataset / config.run_name
    accelerator = start_accelerator(config, path)
    log_file = Path(config.log_dir) / f"{config.dataset}_{config.run_name}.log" if config.log_dir else path / "log.txt"
    run = RunFolder(path, accelerator.is_main_process, log_file, lambda *event: accelerator.log(*event))
    batch = config.train_batch_size * accelerator.num_processes * config.gradient_accumulation_steps
    if on_main_process(lambda: run.claim(config, lambda: dataset.sources, batch), accelerator) == "reuse":
        accelerator.print(f"{run.path} is already finished with these settings")
        return None
    seed_everything(config.rand_seed, config.reproducibility)
    data = load_data(config, dataset, accelerator)
    check()
    recommender = make_recommender(config)
    if not config.allow_other_identifiers:
        remedy = "choose tokenizers of its training, or start from it all the same with --allow_other_identifiers"
        check_semantic_ids(recommender.semantic_ids_sha256, data.table, config.pretrained_model, remedy)
    recommender.semantic_ids_sha256 = data.table.sha256
    state = on_main_process(lambda: open_run(run, config, data, accelerator), accelerator)
    snapshot = read_snapshot(state) if state else None
    start_tracker(accelerator, config, 1 + snapshot.values["progress"]["step"] if snapshot else 1)
    warnings = [f"warning: {line}" for line in judge_tokenizers(data.table)]
    for line in describe(config, data, recommender, accelerator) + warnings:
        run.say(line)
    return Trainer(config, accelerator, run, data, recommender, snapshot)


def start_accelerator(config: TrainingConfig, path: Path) -> Accelerator:
    """Meet the other processes, with the precision and the tracker of the settings, for the run's folder `path`."""
    tracker = None if config.log_with == "none" else config.log_with
    boards = config.tensorboard_log_dir
    tracker_folder = Path(boards) / config.dataset / config.run_name if boards else path
    try:
        accelerator, _ = join_processes(
            remedy="lower NUM_GPUS, or set CPU=1 for processes on the CPU",
            mixed_precision=config.mixed_precision,
            log_with=tracker,
            project_dir=str(tracker_folder),
        )
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        settings = f"--log_with={config.log_with} --mixed_precision={config.mixed_precision}"
        raise InputError(f"Accelerate does not start here with {settings}: {error}") from None
    if tracker and not accelerator.log_with:
        raise InputError(f"--log_with={tracker} is not installed; install it, or choose tensorboard or none")
    return accelerator


def open_run(run: RunFolder, config: TrainingConfig, data: Data, accelerator: Accelerator) -> Path | None:
    """Lock the run's folder and make it ready; return the saved state to go on from, None where the run starts anew.

    Raises InputError where another process has the folder, or what is there may not be resumed.
    """
    run.lock()
    try:
        run.claim_again(config, lambda: data.sources, data.order.global_batch_size)
        state, notes = newest_snapshot(run.states) if config.resume else (None, [])
        if state:
            values = read_values(state)
            check_resumable(values, config, data)
            run.reopen(config, values["metrics_size"], values["progress"]["closed"])
        else:
            run.create(config)
            notes = [f"{run.path} has no saved state to resume: starting anew"] if config.resume else []
    except BaseException:
        run.unlock()
        raise
    for note in notes:
        run.say(note)
    if not state:
        environment = describe_environment(accelerator.device, accelerator.num_processes)
        write_json(run.path / ENVIRONMENT_FILE, environment | {"sources": data.sources})
    return state


def check_resumable(values: dict, config: TrainingConfig, data: Data) -> None:
    """Raise InputError if a saved state's values do not fit the data or the settings that may have changed."""
    progress, batch = values["progress"], data.order.global_batch_size
    problems = [f"{name} changed" for name, there in values["data"].items() if data.sources.get(name) != there]
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
    back = progress["epoch"] - progress["best_epoch"]
    if progress["stopped"] and (config.patience is None or back < config.patience):
        problems.append(f"patience={config.patience}, but it has stopped early, {back} epochs after its best")
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
        return load_recommender(path, dropout_rate=config.dropout_rate)
    sizes = {name: getattr(config, name) for name in (*SIZE_FLAGS, "dropout_rate")}
    recommender = build_recommender(Architecture(level_sizes(config.n_codebooks, config.codebook_size), **sizes))
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
