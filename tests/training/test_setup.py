import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_dataset import make_dataset
from tiny_runs import MODEL, ROOT, flags, sizes_of_files

from data.batching import training_users
from data.token_table import level_sizes
from model.recommender import Architecture, build_recommender, load_recommender
from training.config import FinetuneConfig, PretrainConfig, TrainingConfig
from training.curriculum import influence_positions
from training.data import Dataset, load_data
from training.setup import (
    check_resumable,
    describe,
    make_recommender,
    open_run,
    resolve_config,
    start_run,
)
from utils.config import parse_config
from utils.errors import InputError


@pytest.fixture
def inputs(dataset: Path, tmp_path: Path) -> Callable[..., tuple[TrainingConfig, Dataset]]:
    """Return a reader of flags for the tiny dataset, as the commands read them."""

    def read(config_class: type[TrainingConfig] = FinetuneConfig, **settings: object) -> tuple[TrainingConfig, Dataset]:
        argv = flags(dataset, tmp_path / "runs", **{"run_name": "run"} | settings)
        return resolve_config(*parse_config(config_class, argv, "test", ""))

    return read


@pytest.fixture
def resolve(inputs: Callable[..., tuple[TrainingConfig, Dataset]]) -> Callable[..., TrainingConfig]:
    """Return the same, for the settings alone."""
    return lambda *given, **settings: inputs(*given, **settings)[0]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a pre-trained model's folder: the tiny architecture, 3 x 8 codes."""
    torch.manual_seed(0)
    build_recommender(Architecture(level_sizes(3, 8), **MODEL)).save_pretrained(tmp_path / "pre" / "model")
    return tmp_path / "pre"


def test_tokenizers_that_are_there_are_written_into_the_settings(resolve):
    config = resolve()
    assert (config.token_prefix, config.sem_id_epochs) == ("rqvae/toy_8,8,8,8", [1, 2, 3])
    assert resolve(num_tokenizers=2).sem_id_epochs == [2, 3]
    assert resolve(num_tokenizers=2).num_tokenizers is None
    assert resolve(sem_id_epochs="1:2").sem_id_epochs == [1, 2]
    assert resolve(sem_id_epochs=[3, 1], num_tokenizers=1).sem_id_epochs == [3, 1]


def test_absent_tokenizers_or_dataset(resolve):
    with pytest.raises(InputError, match=r"no file for epoch 4, 5; present: 1\.\.3 \(3 epochs\)"):
        resolve(sem_id_epochs="3:5")
    with pytest.raises(InputError, match=r"has 3 numbered .sem_ids files, 4 are wanted: .*--num_tokenizers"):
        resolve(num_tokenizers=4)
    with pytest.raises(InputError, match=r"Tiney does not exist; did you mean Tiny\?"):
        resolve(dataset="Tiney")


def test_several_prefixes(inputs, resolve, dataset):
    for file in list((dataset / "rqvae").iterdir()):
        (dataset / "rqvae" / file.name.replace("toy", "twin")).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"choose with --token_prefix: rqvae/toy_8,8,8,8 rqvae/twin_8,8,8,8"):
        resolve()
    config, found = inputs(token_prefix='["twin_8,8,8,8","rqvae/toy_8,8,8,8"]', sem_id_epochs=[2, 3])
    assert config.token_prefix == ["rqvae/twin_8,8,8,8", "rqvae/toy_8,8,8,8"]
    table = load_data(config, found, Accelerator()).tokenization.table
    assert [(group.prefix, group.epoch) for group in table.groups] == [
        (prefix, epoch) for prefix in config.token_prefix for epoch in (2, 3)
    ]
    assert torch.equal(table.tokens[:2], table.tokens[2:])


def test_prefixes_with_different_epochs_keep_their_own(inputs, resolve, dataset):
    """Which these are is written into the settings, from which the same tokenizers are found again."""
    (dataset / "other").mkdir()
    for name, copy in (("3", "twin_8,8,8,8_3"), ("1", "lone_8,8,8,8")):
        file = dataset / "rqvae" / f"toy_8,8,8,8_{name}.sem_ids"
        (dataset / "other" / f"{copy}.sem_ids").write_bytes(file.read_bytes())
    prefixes = ["toy_8,8,8,8", "other/twin_8,8,8,8", "other/lone_8,8,8,8"]
    config, found = inputs(token_prefix=json.dumps(prefixes))
    chosen = [("rqvae/toy_8,8,8,8", 1), ("rqvae/toy_8,8,8,8", 2), ("rqvae/toy_8,8,8,8", 3)]
    chosen += [("other/twin_8,8,8,8", 3), ("other/lone_8,8,8,8", None)]
    assert [(group.prefix, group.epoch) for group in found.groups] == chosen
    pinned = ["rqvae/toy_8,8,8,8@1,2,3", "other/twin_8,8,8,8@3", "other/lone_8,8,8,8@best"]
    assert (config.token_prefix, config.sem_id_epochs) == (pinned, None)
    again, groups = inputs(token_prefix=json.dumps(pinned))
    assert (again.token_prefix, groups.groups) == (pinned, found.groups)
    config = resolve(token_prefix='["toy_8,8,8,8@2:3","other/twin_8,8,8,8"]', sem_id_epochs=[3])
    assert config.token_prefix == ["rqvae/toy_8,8,8,8@2,3", "other/twin_8,8,8,8@3"]
    config = resolve(token_prefix='["toy_8,8,8,8","other/twin_8,8,8,8"]', num_tokenizers=1)
    assert (config.token_prefix, config.sem_id_epochs) == (["rqvae/toy_8,8,8,8", "other/twin_8,8,8,8"], [3])
    with pytest.raises(InputError, match=r"no file for epoch 4; present: 1\.\.3"):
        resolve(token_prefix="toy_8,8,8,8@4")


def test_best_checkpoint_where_no_file_has_a_number(inputs, dataset):
    (dataset / "rqvae" / "toy_8,8,8,8_3.sem_ids").rename(dataset / "rqvae" / "toy_8,8,8,8.sem_ids")
    for epoch in (1, 2):
        (dataset / "rqvae" / f"toy_8,8,8,8_{epoch}.sem_ids").unlink()
    config, found = inputs()
    assert config.sem_id_epochs is None
    assert load_data(config, found, Accelerator()).tokenization.table.labels == ["best"]


def test_architecture_comes_from_the_model(resolve, model, dataset, tmp_path):
    argv = flags(dataset, tmp_path / "runs", model=False, pretrained_model=model)
    config = resolve_config(*parse_config(FinetuneConfig, argv, "test", ""))[0]
    assert {name: getattr(config, name) for name in MODEL} == MODEL
    assert (config.n_codebooks, config.codebook_size, config.n_user_tokens) == (3, [8, 8, 8, 8], 1)
    recommender = make_recommender(config)
    expected = load_recommender(model / "model")
    for a, b in zip(recommender.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


def test_equal_flags_beside_a_model_are_no_contradiction(resolve, model):
    for codebook_size in (8, [8, 8, 8], [8, 8, 8, 8]):
        assert resolve(pretrained_model=model, codebook_size=codebook_size).codebook_size == [8, 8, 8, 8]


def test_all_contradicting_flags_are_named(resolve, model):
    with pytest.raises(InputError) as caught:
        resolve(pretrained_model=model, num_layers=2, d_model=32, codebook_size=16)
    message = str(caught.value)
    for part in ("num_layers=2 (the model has 1)", "d_model=32 (the model has 16)", "codebook_size=16"):
        assert part in message
    assert message.endswith("leave them out")
    assert "d_ff" not in message


def test_model_that_is_not_there(resolve, tmp_path):
    with pytest.raises(InputError, match="absent does not exist; leave the flag out to train from scratch"):
        resolve(pretrained_model=tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"is neither a model folder .* nor a run folder"):
        resolve(pretrained_model=tmp_path / "empty")


def test_reference_checkpoint_settles_the_sizes(golden, tmp_path):
    """The golden case's .pth; its vocabulary has to be given."""
    file = golden.folder / "reference_checkpoint.pth"
    expected = golden.weights("weights_after_5_steps/")
    sizes = sizes_of_files(golden.dataset)
    argv = [f"--dataset={golden.dataset.name}", f"--data_dir={golden.dataset.parent}", f"--pretrained_model={file}"]
    with pytest.raises(InputError, match=rf"has a vocabulary of {sum(sizes) + 3} tokens; .* make 1031"):
        resolve_config(*parse_config(FinetuneConfig, [*argv, "--codebook_size=257"], "test", ""))
    argv += [f"--n_codebooks={len(sizes) - 1}", f"--codebook_size={sizes}".replace(" ", "")]
    with pytest.raises(InputError, match=r"d_model=7 \(the model has"):
        resolve_config(*parse_config(FinetuneConfig, [*argv, "--d_model=7"], "test", ""))
    config, _ = resolve_config(*parse_config(FinetuneConfig, argv, "test", ""))
    assert config.d_model == golden.weights()["t5.shared.weight"].shape[1]
    for name, weight in make_recommender(config).named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-4, atol=1e-5)


def test_dropout_is_the_runs_own(resolve, model):
    config = resolve(pretrained_model=model, dropout_rate=0.3)
    recommender = make_recommender(config)
    rates = {module.p for module in recommender.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.3}


def test_weights_from_scratch_depend_on_the_seed_alone(inputs):
    def weights(seed: int, name: str) -> torch.Tensor:
        config, found = inputs(rand_seed=seed, run_name=name)
        return torch.cat([p.flatten() for p in start_run(config, found).recommender.parameters()])

    first = weights(1, "a")
    assert torch.equal(first, weights(1, "b"))
    assert not torch.equal(first, weights(2, "c"))


def test_splits_and_order(inputs):
    data = load_data(*inputs(train_batch_size=50), Accelerator())
    assert (len(data.order.positions), len(data.valid), len(data.test)) == (351, 27, 28)
    assert (data.order.batches_per_epoch, data.order.global_batch_size) == (8, 50)
    np.testing.assert_array_equal(data.valid, data.valid_sample)


def test_train_user_ratio_takes_whole_users_and_leaves_validation_and_test_alone(inputs):
    full, half = (load_data(*inputs(train_user_ratio=ratio), Accelerator()) for ratio in (1.0, 0.5))
    np.testing.assert_array_equal(half.valid, full.valid)
    np.testing.assert_array_equal(half.test, full.test)
    interactions = full.tokenization.interactions
    users = np.unique(interactions.users_of(half.order.positions))
    of_them = np.isin(interactions.users_of(full.order.positions), users)
    np.testing.assert_array_equal(half.order.positions, full.order.positions[of_them])
    assert 0 < len(users) <= round(interactions.num_users / 2)
    again, other = (load_data(*inputs(train_user_ratio=0.5, rand_seed=seed), Accelerator()) for seed in (2024, 1))
    np.testing.assert_array_equal(again.order.positions, half.order.positions)
    assert other.order.positions.tolist() != half.order.positions.tolist()


def test_validation_of_new_users_has_none_that_is_trained_on(inputs):
    pairs = [inputs(train_user_ratio=0.5, val_users=users) for users in ("all", "new")]
    everyone, new = (load_data(*pair, Accelerator()) for pair in pairs)
    np.testing.assert_array_equal(new.order.positions, everyone.order.positions)
    np.testing.assert_array_equal(new.test, everyone.test)
    interactions = new.tokenization.interactions
    trained_on = np.flatnonzero(training_users(interactions.num_users, 0.5, seed=2024))
    assert len(trained_on) == interactions.num_users // 2
    assert set(interactions.users_of(new.order.positions)) <= set(trained_on)
    expected = [target for target in everyone.valid if interactions.users_of(target) not in trained_on]
    assert new.valid.tolist() == expected
    assert 0 < len(expected) < len(everyone.valid)


def test_test_ratio_is_a_fixed_share_of_the_test_alone(inputs):
    whole, part = (load_data(*inputs(test_ratio=ratio), Accelerator()) for ratio in (1.0, 0.4))
    assert len(part.test) == round(0.4 * len(whole.test))
    assert set(part.test) <= set(whole.test)
    assert part.valid_sample.tolist() == whole.valid_sample.tolist()
    assert load_data(*inputs(test_ratio=0.4), Accelerator()).test.tolist() == part.test.tolist()


def test_val_ratio_is_a_fixed_share_and_leaves_influence_alone(inputs):
    data = load_data(*inputs(val_ratio=0.4), Accelerator())
    assert (len(data.valid), len(data.valid_sample)) == (27, 11)
    assert set(data.valid_sample) < set(data.valid)
    again = load_data(*inputs(val_ratio=0.4), Accelerator())
    np.testing.assert_array_equal(data.valid_sample, again.valid_sample)
    other = load_data(*inputs(val_ratio=0.4, rand_seed=1), Accelerator())
    assert data.valid_sample.tolist() != other.valid_sample.tolist()


def test_influence_sample_is_one_share_for_the_whole_run(inputs, resolve):
    config, found = inputs(PretrainConfig, influence_sample_ratio=0.25)
    order = load_data(config, found, Accelerator()).order
    sample = influence_positions(order, config.influence_sample_ratio)
    assert len(sample) == 88  # a quarter of 351
    assert set(sample) < set(order.positions)
    np.testing.assert_array_equal(sample, influence_positions(order, config.influence_sample_ratio))
    np.testing.assert_array_equal(influence_positions(order, 1.0), order.positions)


def test_dataset_without_training_examples(inputs, dataset):
    sequences = '{"user1": ["item1", "item2", "item3"]}'
    (dataset / "all_item_seqs.json").write_text(sequences)
    with pytest.raises(InputError, match="no user has enough items for train examples"):
        load_data(*inputs(), Accelerator())


def test_what_is_said_before_the_start(inputs, model):
    config, found = inputs(sem_id_epochs=[1, 3], gradient_accumulation_steps=2)
    accelerator = Accelerator()
    data, recommender = load_data(config, found, accelerator), make_recommender(config)
    text = "\n".join(describe(config, data, recommender, accelerator))
    assert "dataset Tiny: 30 users, 20 items, 351 training examples" in text
    assert "tokenizers (2) of rqvae/toy_8,8,8,8: 1, 3" in text
    assert "weights from scratch" in text
    assert "global batch 32 = 16 x 1 processes x 2 batches, 11 steps an epoch, on cpu" in text
    config, found = inputs(pretrained_model=model)
    assert f"weights from {model}" in "\n".join(describe(config, data, recommender, accelerator))


def test_list_valued_codebook_sizes(tmp_path):
    folder = make_dataset(tmp_path / "datasets" / "Mixed", num_items=12, codebook_size=4, epochs=(1,))
    argv = flags(folder, tmp_path / "runs", codebook_size=[8, 6, 4])
    config, found = resolve_config(*parse_config(FinetuneConfig, argv, "test", ""))
    assert load_data(config, found, Accelerator()).tokenization.table.vocabulary.size == 8 + 6 + 4 + 4 + 3


def test_run_folder_is_refused_reused_or_replaced(inputs, tmp_path, capsys):
    run = start_run(*inputs()).run
    assert run.path == tmp_path / "runs" / "Tiny" / "run"
    with pytest.raises(
        InputError, match=r"holds an unfinished run; go on with --resume \(RESUME=1\), or start anew with --overwrite"
    ):
        start_run(*inputs(reuse=True))
    (run.path / "results.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"holds a finished run; set another RUN_NAME \(--run_name\), or start anew with --overwrite"
    ):
        start_run(*inputs())
    assert start_run(*inputs(reuse=True)) is None
    assert f"{run.path} is already finished with these settings" in capsys.readouterr().out
    with pytest.raises(InputError) as caught:
        start_run(*inputs(reuse=True, lr=0.5, epochs=9))
    assert "with other settings: lr=0.5 (there: 0.01); epochs=9 (there: 100); set another RUN_NAME" in str(caught.value)
    (run.path / "old").write_text("")
    with pytest.raises(InputError, match=rf"{run.path} is in use by process {os.getpid()} on .*; wait for it"):
        start_run(*inputs(overwrite=True, lr=0.5))
    assert (run.path / "old").exists()
    run.unlock()
    assert start_run(*inputs(overwrite=True, lr=0.5)) is not None
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "config.yaml", "environment.json", "log.txt"]


def test_a_finished_run_stays_finished_where_it_is_moved_or_resumed_on_other_gpus(inputs, tmp_path):
    run = start_run(*inputs(train_batch_size=4, gradient_accumulation_steps=4)).run
    run.unlock()
    (run.path / "results.json").write_text(json.dumps({"global_batch_size": 16}))
    moved = {"train_batch_size": 4, "resume": True, "checkpoint_minutes": 3, "log_with": "none"}
    config, found = inputs(gradient_accumulation_steps=1, **moved)
    assert run.claim(config, lambda: found.sources, 16) == "reuse"
    for settings in ({"gradient_accumulation_steps": 1}, {"gradient_accumulation_steps": 4, "epochs": 7}):
        with pytest.raises(InputError, match="holds a finished run with other settings"):
            run.claim(inputs(**settings, **moved)[0], dict, 4 * settings["gradient_accumulation_steps"])


def test_a_finished_run_of_a_tokenizer_trained_again_of_other_interactions_or_weights_is_refused(
    inputs, dataset, model
):
    read = {"pretrained_model": model, "allow_other_identifiers": True}
    trainer = start_run(*inputs(**read))
    trainer.run.unlock()
    (trainer.run.path / "results.json").write_text("{}")
    assert start_run(*inputs(**read, reuse=True)) is None

    def turn_round(file: Path) -> None:
        values = json.loads(file.read_text())
        file.write_text(json.dumps(dict(zip(values, reversed(values.values()), strict=True))))

    changed = r"holds a finished run of the same settings, but since then these changed: "
    turn_round(next(dataset.glob("rqvae/*_3.sem_ids")))
    with pytest.raises(InputError, match=changed + "semantic IDs of tokenizer 3; set another RUN_NAME"):
        start_run(*inputs(**read, reuse=True))
    turn_round(next(dataset.glob("rqvae/*_3.sem_ids")))
    turn_round(dataset / "all_item_seqs.json")
    build_recommender(Architecture(level_sizes(3, 8), **MODEL)).save_pretrained(model / "model")
    with pytest.raises(InputError, match=changed + "interactions, pre-trained weights; set another RUN_NAME"):
        start_run(*inputs(**read, reuse=True))


def test_a_run_that_stopped_early_is_not_resumed_with_more_patience(inputs):
    config, found = inputs(patience=3)
    data = load_data(config, found, Accelerator())
    progress = {"step": 0, "epoch": 5, "best_epoch": 2, "stopped": True, "testing": True}
    values = {"data": data.sources, "global_batch_size": data.order.global_batch_size, "progress": progress}
    check_resumable(values, config, data)
    check_resumable(values, inputs(patience=2)[0], data)
    for patience in (4, "null"):
        with pytest.raises(InputError, match=r"patience=\w+, but it has stopped early, 3 epochs after its best"):
            check_resumable(values, inputs(patience=patience)[0], data)


def test_a_start_that_fails_leaves_no_run(inputs, dataset, tmp_path):
    config, found = inputs()
    next(dataset.glob("rqvae/*_3.sem_ids")).write_text("{}")
    with pytest.raises(InputError, match="20 of 20 items have no semantic ID"):
        start_run(config, found)
    assert not (tmp_path / "runs").exists()


def test_log_can_lie_elsewhere(inputs, tmp_path):
    run = start_run(*inputs(log_dir=tmp_path / "logs")).run
    run.say("hello")
    assert (tmp_path / "logs" / "Tiny_run.log").read_text().endswith(" hello\n")


def test_unknown_or_absent_tracker_is_refused(inputs, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"--log_with=nonsense .*Choose between"):
        start_run(*inputs(log_with="nonsense"))
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *_: [])
    with (
        pytest.warns(UserWarning, match="no supported trackers"),
        pytest.raises(InputError, match="--log_with=wandb is not installed"),
    ):
        start_run(*inputs(log_with="wandb"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(accelerate.__version__.startswith("1.0."), reason="Accelerate 1.0 asks for a master address itself")
def test_processes_that_each_run_alone_are_refused(dataset, tmp_path):
    argv = [sys.executable, "finetune.py", *flags(dataset, tmp_path / "runs", run_name="run")]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK")}
    environment |= {"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "false"}
    result = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr == (
        "error: 2 processes were started but each runs alone: there are not that many GPUs; lower NUM_GPUS, or set "
        "CPU=1 for processes on the CPU\n"
    )
    assert not (tmp_path / "runs").exists()


def test_a_run_that_another_process_finished_meanwhile_is_not_deleted(inputs):
    trainer = start_run(*inputs())
    trainer.run.unlock()
    (trainer.run.path / "results.json").write_text("{}")
    with pytest.raises(InputError, match="was finished by another process meanwhile; start again to reuse it"):
        open_run(trainer.run, inputs(reuse=True)[0], trainer.data, trainer.accelerator)
    assert (trainer.run.path / "results.json").exists()
