import json
import os
import re
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tiny_dataset import make_dataset
from tiny_runs import ROOT, fake_run, run_script

from data.sample import SampleConfig
from report import ReportConfig
from tokenizer.config import TokenizerConfig
from training.config import FinetuneConfig, PretrainConfig
from utils.config import expand_epochs, parse_config

PREFIX = "rqvae/sentence-t5-base_256,256,256,256"
DATASETS = ["Musical_Instruments", "Industrial_and_Scientific", "Video_Games", "Another"]
PARSED = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "select": FinetuneConfig, "report": ReportConfig}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Return folders with the paper's datasets, 9976..10000 as tokenizers, and a finished pre-training of each.

    From each tokenizer to the next one more of 30 items changes a code: 9988 is the middle.
    """
    folder = tmp_path_factory.mktemp("scripts")
    for name in DATASETS:
        make_dataset(folder / "data" / name, num_items=30, epochs=())
        for epoch in range(9976, 10001):
            sem_ids = {f"item{item}": [item, 0, int(item + 9976 <= epoch), 1] for item in range(1, 31)}
            (folder / "data" / name / f"{PREFIX}_{epoch}.sem_ids").write_text(json.dumps(sem_ids))
        kept = tuple(range(10, 201, 10))
        fake_run(folder / "runs" / name / "pretrain_tau3", {"best_epoch": 200}, kept, epoch_per_stage=[60, 20])
    return SimpleNamespace(folder=folder, environment={"DATA_DIR": "data", "CKPT_DIR": "runs"})


def dry_run(world: SimpleNamespace, script: str, *arguments: str, **environment: str) -> list[SimpleNamespace]:
    """Run a script from another folder with DRY_RUN=1; return its commands with their flags parsed."""
    result = run_script(script, *arguments, folder=world.folder, **world.environment | {"DRY_RUN": "1"} | environment)
    assert result.returncode == 0, result.stderr
    return [SimpleNamespace(**read_command(line), said=result.stderr) for line in result.stdout.splitlines()]


def read_command(line: str) -> dict:
    """Split a printed command; its flags go through the real parser."""
    words = shlex.split(line)
    if "accelerate.commands.launch" in words:
        launcher, rest = words[: words.index("--module")], words[words.index("--module") + 1 :]
    else:
        launcher, rest = words[:1], words[words.index("-m") + 1 :]
    name, rest = (rest[1], rest[2:]) if rest[0] == "training.candidates" else (rest[0], rest[1:])
    first_flag = next(index for index, word in enumerate(rest) if word.startswith("--"))
    config, _ = parse_config(PARSED[name], rest[first_flag:], "test", "")
    return {"name": name, "launcher": launcher, "names": rest[:first_flag], "config": config}


@pytest.mark.parametrize(
    ("dataset", "layers", "tokenizers", "taus", "share"),
    [
        ("Musical_Instruments", 6, 25, [1, 3, 5], 0.1),
        ("Industrial_and_Scientific", 5, 15, [1, 3, 5], 0.1),
        ("Video_Games", 7, 25, [1, 3, 5], 0.1),
        ("Another", 6, 25, [3], 1.0),
    ],
)
def test_pre_training_has_the_papers_settings(world, dataset, layers, tokenizers, taus, share):
    """All but the share of examples that influence is estimated on, and evaluation on the way for other datasets."""
    evaluation = {"val_delay": 59, "eval_interval": 10, "patience": 40, "val_ratio": 0.25}
    commands = dry_run(world, "pretrain.sh", DATASET=dataset)
    assert [(command.name, command.config.tau) for command in commands] == [("pretrain", tau) for tau in taus]
    for command, tau in zip(commands, taus, strict=True):
        config = command.config
        assert config == PretrainConfig(
            dataset=dataset,
            data_dir="data",
            ckpt_dir="runs",
            run_name=f"pretrain_tau{tau}",
            reuse=True,
            num_layers=layers,
            num_decoder_layers=layers,
            num_tokenizers=tokenizers,
            tau=tau,
            influence_sample_ratio=share,
            gradient_accumulation_steps=4,
            **evaluation if dataset == "Another" else {"val_delay": 199},
        )
        assert (config.lr, config.warmup_steps, config.epochs, config.save_interval) == (0.005, 10000, 200, 10)
        assert config.epoch_per_stage == [60, 20, 20, 20, 20, 20, 20]


PAPERS = {"epochs": 10000, "save_last": 51, "sent_emb_model": "sentence-transformers/sentence-t5-base"}
OTHERS = {"epochs": 600, "steps_per_epoch": 12, "drift": 0.5, "num_tokenizers": 25, "scheduler_type": "linear"}
LETTER = {
    **{"kind": "letter", "n_codebooks": 4, "hidden_sizes": [2048, 1024, 512, 256, 128, 64, 32], "sent_emb_pca": -1},
    **{"vq_type": "vq", "learner": "adamw", "weight_decay": 1e-4, "batch_size": 1024, "balance": "sinkhorn"},
}


@pytest.mark.parametrize(
    ("dataset", "arguments", "changes"),
    [
        *((name, [], PAPERS) for name in DATASETS[:3]),
        ("Another", [], OTHERS),
        ("Another", ["--epochs=1200"], OTHERS | {"epochs": 1200}),
        ("Another", ["--save_last=5"], {"epochs": 600, "steps_per_epoch": 12, "save_last": 5}),
        ("Another", ["--kind=letter"], OTHERS | LETTER),
        ("Video_Games", ["--kind=letter", "--lr=0.01"], PAPERS | LETTER | {"lr": 0.01}),
    ],
)
def test_tokenizers_have_the_papers_settings_and_those_of_other_data_walk(dataset, arguments, changes):
    """The last epochs of the paper's 10,000; of other data some of the last half, whose learning rate falls to 0."""
    printed = run_script("tokenizer/run.sh", *arguments, DATASET=dataset, DATA_DIR="data", DRY_RUN="1").stdout
    commands = [shlex.split(line) for line in printed.splitlines()]
    assert [words[2] for words in commands] == ["tokenizer.embed", "tokenizer.train", "tokenizer.export"]
    for words in commands:
        config, _ = parse_config(TokenizerConfig, words[3:], "test", "")
        assert config == TokenizerConfig(dataset, config.data_dir, **changes)


def test_pre_training_by_taus_and_flags_of_the_user(world):
    arguments = ["--num_layers=2", "--epochs=9", "--epoch_per_stage=[3,3]", "--overwrite", "--data_dir=/elsewhere"]
    commands = dry_run(world, "pretrain.sh", *arguments, DATASET="Another", RUN_NAME="small", TAU_LIST="0.5,3")
    assert [(c.config.run_name, c.config.tau) for c in commands] == [("small_tau0.5", 0.5), ("small_tau3", 3.0)]
    config = commands[0].config
    assert (config.num_layers, config.num_decoder_layers, config.epochs) == (2, 6, 9)
    assert (config.epoch_per_stage, config.overwrite, config.data_dir) == ([3, 3], True, "/elsewhere")


def test_one_name_for_the_runs_of_several_temperatures_is_refused_at_once(world):
    result = run_script("pretrain.sh", "--run_name=mine", DATASET="Video_Games", DRY_RUN="1")
    assert (result.returncode, result.stdout) == (2, "")
    assert "error: --run_name=mine is one run, taus are 1 3 5: set RUN_NAME=mine instead" in result.stderr


def test_a_temperature_given_as_a_flag_is_the_only_one(world):
    (command,) = dry_run(world, "pretrain.sh", "--tau=2", DATASET="Video_Games")
    assert (command.config.run_name, command.config.tau) == ("pretrain_tau2", 2.0)
    file = world.folder / "flags.yaml"
    file.write_text("tau: 5.0\nrun_name: earlier\nlr: 0.25\n")
    commands = dry_run(world, "pretrain.sh", f"--config_file={file}", DATASET="Video_Games", TAU_LIST="1,3")
    found = [(command.config.run_name, command.config.tau, command.config.lr) for command in commands]
    assert found == [("pretrain_tau1", 1.0, 0.25), ("pretrain_tau3", 3.0, 0.25)]


@pytest.mark.parametrize(
    ("number", "to_all", "said", "code"),
    [
        (signal.SIGTERM, False, "saved", 75),  # kill, docker stop: to the script alone
        (signal.SIGTERM, True, "saved", 75),  # a batch system
        (signal.SIGINT, True, "interrupted", 130),  # a terminal
    ],
)
def test_a_signal_stops_the_command_and_then_the_script(number, to_all, said, code):
    command = """
import signal, sys, time
def stop(number, frame):
    signal.signal(number, signal.SIG_IGN)  # to all, it comes a second time from the script
    print("saved", flush=True)
    time.sleep(0.2)  # while the script waits
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
try:
    print("begun", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""
    script = f'source {ROOT}/utils/launch.sh; run "$PYTHON" -c "$COMMAND"; run echo "the next command"'
    process = subprocess.Popen(
        ["bash", "-c", script],
        env=os.environ | {"COMMAND": command, "VIRTUAL_ENV": sys.prefix},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    assert process.stdout.readline() == "begun\n"
    (os.killpg if to_all else os.kill)(process.pid, number)
    assert set(process.stdout.read().split("\n")) == {said, ""}
    assert process.wait(10) == code


@pytest.mark.parametrize(("code", "goes_on"), [(1, True), (75, False), (130, False), (143, False)])
def test_a_report_that_fails_ends_no_script_and_one_that_is_stopped_does(code, goes_on):
    script = (
        f"source {ROOT}/utils/launch.sh; run() {{ return {code}; }}; report run --ckpt_dir=a --dataset=b; echo next"
    )
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == ((0, "next\n") if goes_on else (code, ""))


def test_a_script_ends_with_the_code_of_the_command_that_failed():
    script = f'source {ROOT}/utils/launch.sh; run true; run bash -c "exit 7"; run echo "the next command"'
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (7, "")


@pytest.mark.parametrize("flag", [["--dataset=Video_Games"], ["--dataset", "Video_Games"]])
def test_a_dataset_given_as_a_flag_has_its_own_settings(world, flag):
    for script in ("pretrain.sh", "finetune.sh"):
        by_flag = dry_run(world, script, *flag, DATASET="Another")
        by_variable = dry_run(world, script, DATASET="Video_Games")
        assert [command.config for command in by_flag] == [command.config for command in by_variable]
        assert by_flag[0].config.dataset == "Video_Games"


@pytest.mark.parametrize(("gpus", "accumulation", "said"), [(1, 4, 4), (2, 2, 4), (3, 1, 3), (8, 1, 8)])
def test_accumulation_keeps_the_papers_global_batch(world, gpus, accumulation, said):
    (command,) = dry_run(world, "pretrain.sh", DATASET="Another", NUM_GPUS=str(gpus))
    assert command.config.gradient_accumulation_steps == accumulation
    assert f"NUM_GPUS={gpus}, the paper has 4: gradients are accumulated over {accumulation}" in command.said
    assert f"over {accumulation} batches, so a step sees {said} batches (paper: 4 of 256 examples;" in command.said


def test_four_gpus_or_an_own_accumulation_are_nothing_to_say(world):
    (command,) = dry_run(world, "pretrain.sh", DATASET="Another", NUM_GPUS="4")
    assert (command.config.gradient_accumulation_steps, command.said) == (1, "")
    (command,) = dry_run(world, "pretrain.sh", "--gradient_accumulation_steps=3", DATASET="Another")
    assert (command.config.gradient_accumulation_steps, command.said) == (3, "")


def test_more_than_one_process_starts_under_accelerate(world):
    (command,) = dry_run(world, "pretrain.sh", DATASET="Another")
    assert len(command.launcher) == 1  # plain python
    for environment, before in (({}, []), ({"CPU": "1"}, ["env", "ACCELERATE_USE_CPU=true"])):
        (command,) = dry_run(world, "pretrain.sh", DATASET="Another", NUM_GPUS="2", **environment)
        start = command.launcher.index("-m")
        assert command.launcher[: start - 1] == before
        assert command.launcher[start : start + 5] == [
            *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        ]


@pytest.mark.parametrize("gpus", ["0", "00", "two", "-1", "1.5", "9999999"])
def test_number_of_processes_is_checked(world, gpus):
    result = run_script("pretrain.sh", folder=world.folder, DRY_RUN="1", NUM_GPUS=gpus)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: NUM_GPUS={gpus} is not a number of processes\n"


def test_number_of_processes_may_begin_with_0(world):
    (command,) = dry_run(world, "pretrain.sh", DATASET="Another", NUM_GPUS="08")
    assert "NUM_GPUS=8, the paper has 4" in command.said
    assert command.launcher[command.launcher.index("--num_processes") + 1] == "8"


@pytest.mark.parametrize("word", ["1", "yes", "true", "on", "YES", "True"])
def test_words_that_switch_on(world, word):
    command = dry_run(world, "pretrain.sh", DATASET="Another", DRY_RUN=word, RESUME=word, CPU=word, NUM_GPUS="2")[0]
    assert (command.config.resume, command.launcher[:2]) == (True, ["env", "ACCELERATE_USE_CPU=true"])
    assert dry_run(world, "pretrain.sh", DATASET="Another", REPORT=word)[1].name == "report"


@pytest.mark.parametrize("word", ["0", "no", "false", "off", "NO", "False", ""])
def test_words_that_switch_off(world, tmp_path, word):
    (command,) = dry_run(
        world, "pretrain.sh", DATASET="Another", RESUME=word, CPU=word, REPORT=word or "0", NUM_GPUS="2"
    )
    assert (command.config.resume, "env" in command.launcher) == (False, False)
    environment = {"DATASET": "Another", "DATA_DIR": "data", "CKPT_DIR": str(tmp_path), "DRY_RUN": word}
    result = run_script("finetune.sh", folder=world.folder, **environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {tmp_path}/Another holds no finished pre-training")


@pytest.mark.parametrize(
    "script", ["pretrain.sh", "finetune.sh", "tokenizer/run.sh", "data/prepare.sh", "quickstart.sh"]
)
def test_other_words_are_refused(tmp_path, script):
    for name in ("DRY_RUN", "RESUME", "REPORT", "SKIP_INSTALL", "CPU"):
        result = run_script(script, folder=tmp_path, **{"NUM_GPUS": "2", "DRY_RUN": "1", name: "2"})
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == f"error: {name}=2 is neither on (1, yes, true, on) nor off (0, no, false, off)\n"


def test_the_setup_names_the_scripts_that_use_it():
    scripts = [path for pattern in ("*.sh", "*/*.sh", ".ci/run") for path in ROOT.glob(pattern)]
    users = [path for path in scripts if re.search(r"^source .*/utils/setup\.sh", path.read_text(), re.MULTILINE)]
    named = re.search(r"^# Sourced by (.*):", (ROOT / "utils" / "setup.sh").read_text(), re.MULTILINE)[1]
    assert sorted(re.split(", | and ", named)) == sorted(f"{path.relative_to(ROOT)}" for path in users)


def test_cdpath_changes_nothing():
    plain, other = (run_script("tokenizer/run.sh", DRY_RUN="1", CDPATH=path) for path in ("", ".:/tmp"))
    assert other.returncode == 0
    assert (other.stdout, other.stderr) == (plain.stdout, plain.stderr)
    assert f"--data_dir={ROOT}/datasets" in shlex.split(other.stdout.splitlines()[0])
    command = ["bash", "-c", 'source utils/setup.sh; echo "$SETUP_ROOT"']
    found = subprocess.run(command, cwd=ROOT, env=os.environ | {"CDPATH": ".:/tmp"}, capture_output=True, text=True)
    assert found.stdout == f"{ROOT}\n"


def test_defaults_lie_in_the_project(world):
    result = run_script("pretrain.sh", folder=world.folder, DRY_RUN="1", TAU_LIST="3")
    config = read_command(result.stdout)["config"]
    assert (config.dataset, config.data_dir, config.ckpt_dir) == (
        "Musical_Instruments",
        str(ROOT / "datasets"),
        str(ROOT / "ckpt"),
    )


@pytest.mark.parametrize(
    ("dataset", "checkpoints", "epochs"),
    [
        ("Musical_Instruments", [90, 100, 110, 120], range(9986, 9992)),
        ("Industrial_and_Scientific", [90, 100, 110, 120], range(9991, 9996)),
        ("Video_Games", [140, 150, 160], range(9986, 9992)),
        ("Another", ["best"], range(9987, 9990)),
    ],
)
def test_fine_tuning_has_the_papers_settings(world, dataset, checkpoints, epochs):
    *commands, selection = dry_run(world, "finetune.sh", DATASET=dataset)
    pairs = [(checkpoint, epoch) for checkpoint in checkpoints for epoch in epochs]
    names = [f"finetune_{checkpoint}_{epoch}" for checkpoint, epoch in pairs]
    assert (selection.name, selection.names) == ("select", ["finetune", *names])
    assert (selection.config.dataset, selection.config.ckpt_dir) == (dataset, "runs")
    for command, name, (checkpoint, epoch) in zip(commands, names, pairs, strict=True):
        model = "model" if checkpoint == "best" else f"checkpoints/epoch_{checkpoint}"
        assert expand_epochs(command.config.sem_id_epochs) == [epoch]
        assert command.config == FinetuneConfig(
            dataset=dataset,
            data_dir="data",
            ckpt_dir="runs",
            run_name=name,
            reuse=True,
            pretrained_model=f"runs/{dataset}/pretrain_tau3/{model}",
            token_prefix=PREFIX,
            sem_id_epochs=command.config.sem_id_epochs,
            lr=0.0002,
            gradient_accumulation_steps=4,
        )
        assert (command.config.epochs, command.config.patience, command.config.test_num_beams) == (100, 10, 50)


@pytest.mark.parametrize("script", ["pretrain.sh", "finetune.sh"])
def test_resume_is_passed_on(world, script):
    for environment, resume in (({}, False), ({"RESUME": "1"}, True)):
        command = dry_run(world, script, DATASET="Another", **environment)[0]
        assert (command.config.resume, command.config.reuse) == (resume, True)


def test_joint_fine_tuning(world):
    *commands, selection = dry_run(
        world, "finetune.sh", "--lr=0.5", DATASET="Video_Games", FINETUNE="joint", RUN_NAME="j"
    )
    assert [command.config.run_name for command in commands] == ["j_140_joint", "j_150_joint", "j_160_joint"]
    assert selection.names == ["j", "j_140_joint", "j_150_joint", "j_160_joint"]
    for command in commands:
        assert expand_epochs(command.config.sem_id_epochs) == list(range(9986, 9992))
        assert command.config.lr == 0.5


def test_training_from_scratch(world):
    arguments = ["--sem_id_epochs=[9999,10000]", "--num_layers=2", "--warmup_steps=7"]
    environment = {"DATASET": "Another", "PRETRAINED": "none", "NUM_GPUS": "2"}
    *commands, selection = dry_run(world, "finetune.sh", *arguments, **environment)
    assert [(c.config.run_name, c.config.pretrained_model, c.config.num_layers) for c in commands] == [
        ("finetune_scratch_9999", "", 2),
        ("finetune_scratch_10000", "", 2),
    ]
    assert [(c.config.token_prefix, c.config.warmup_steps, c.config.num_decoder_layers) for c in commands] == [
        (PREFIX, 7, 6),
        (PREFIX, 7, 6),
    ]
    assert "training from scratch" in selection.said
    assert commands[0].launcher[1:4] == ["-m", "accelerate.commands.launch", "--multi_gpu"]
    assert commands[0].config.gradient_accumulation_steps == 2
    assert len(selection.launcher) == 1


@pytest.mark.parametrize(("dataset", "layers"), list(zip(DATASETS, [6, 5, 7, 6], strict=True)))
def test_training_from_scratch_has_pre_trainings_settings(world, dataset, layers):
    arguments = {"DATASET": dataset, "PRETRAINED": "none", "FINETUNE": "joint", "NUM_GPUS": "4"}
    command, _ = dry_run(world, "finetune.sh", **arguments)
    assert command.config == FinetuneConfig(
        dataset=dataset,
        data_dir="data",
        ckpt_dir="runs",
        run_name="finetune_scratch_joint",
        reuse=True,
        token_prefix=PREFIX,
        sem_id_epochs=command.config.sem_id_epochs,
        num_layers=layers,
        num_decoder_layers=layers,
        lr=0.005,
        warmup_steps=10000,
        epochs=200,
        patience=20,
    )


def test_fine_tuning_with_several_prefixes(world, tmp_path):
    for name in ("one", "two"):
        (tmp_path / "Twins" / "rqvae").mkdir(parents=True, exist_ok=True)
        for epoch in (7, 8):
            (tmp_path / "Twins" / "rqvae" / f"{name}_8,8_{epoch}.sem_ids").write_text("{}")
    arguments = ['--token_prefix=["one_8,8","two_8,8"]', "--sem_id_epochs=[7,8]"]
    environment = {"DATASET": "Twins", "DATA_DIR": str(tmp_path), "PRETRAINED": "none"}
    *commands, _ = dry_run(world, "finetune.sh", *arguments, **environment)
    assert [(c.config.run_name, c.config.token_prefix, expand_epochs(c.config.sem_id_epochs)) for c in commands] == [
        ("finetune_scratch_0_7", "rqvae/one_8,8", [7]),
        ("finetune_scratch_0_8", "rqvae/one_8,8", [8]),
        ("finetune_scratch_1_7", "rqvae/two_8,8", [7]),
        ("finetune_scratch_1_8", "rqvae/two_8,8", [8]),
    ]
    command, _ = dry_run(world, "finetune.sh", *arguments, FINETUNE="joint", **environment)
    assert command.config.token_prefix == ["rqvae/one_8,8", "rqvae/two_8,8"]
    assert expand_epochs(command.config.sem_id_epochs) == [7, 8]


def test_dry_run_without_any_run_shows_placeholders(world, tmp_path):
    environment = {"DRY_RUN": "1", "DATASET": "Another", "DATA_DIR": "data", "CKPT_DIR": str(tmp_path)}
    result = run_script("finetune.sh", folder=world.folder, **environment)
    assert result.returncode == 0
    assert f"not known yet: {tmp_path}/Another holds no finished pre-training; run pretrain.sh first" in result.stderr
    first, second = (shlex.split(line) for line in result.stdout.splitlines())
    assert first[-4:] == [
        "--run_name=finetune_best_TOKENIZER",
        "--pretrained_model=PRETRAINING/model",
        "--token_prefix=PREFIX",
        "--sem_id_epochs=[TOKENIZER]",
    ]
    assert second[2:6] == ["training.candidates", "select", "finetune", "finetune_best_TOKENIZER"]


def test_without_a_dry_run_that_is_an_error(world, tmp_path):
    environment = {"DATASET": "Another", "DATA_DIR": "data", "CKPT_DIR": str(tmp_path)}
    result = run_script("finetune.sh", folder=world.folder, **environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {tmp_path}/Another holds no finished pre-training")


@pytest.mark.parametrize("script", ["pretrain.sh", "finetune.sh"])
def test_unknown_flag_stops_the_script(world, script):
    result = run_script(script, "--warmup_stepz=3", folder=world.folder, DATASET="Another", **world.environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert "error: unknown flag --warmup_stepz (did you mean --warmup_steps?)" in result.stderr


def test_fine_tuning_is_single_or_joint(world):
    result = run_script("finetune.sh", folder=world.folder, DRY_RUN="1", FINETUNE="both")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: FINETUNE=both is neither single nor joint\n"


@pytest.mark.parametrize("script", ["pretrain.sh", "finetune.sh"])
def test_every_setting_that_a_script_reads_is_explained_in_it(script):
    text = (ROOT / script).read_text()
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    shared = "".join((ROOT / "utils" / name).read_text() for name in ("launch.sh", "switches.sh"))
    read = set(re.findall(r"(?:\$\{|^switch )([A-Z_]+)(?::-| [01])", text + shared, re.MULTILINE))
    assert {"DATASET", "DRY_RUN", "RESUME", "REPORT"} <= read
    read -= {"VIRTUAL_ENV", "PYTHONPATH", "CPU", "SKIP_INSTALL"}
    assert {name for name in read if not re.search(rf"\b{name}\b", comments)} == set()


QUICKSTART = {
    "data.sample": SampleConfig,
    **dict.fromkeys(["tokenizer.embed", "tokenizer.train", "tokenizer.export"], TokenizerConfig),
    **PARSED,
    "report": ReportConfig,
}


def test_every_flag_of_the_quickstart_parses(tmp_path):
    data, runs = f"{tmp_path}/data", f"{tmp_path}/runs"
    result = run_script("quickstart.sh", folder=tmp_path, DRY_RUN="1", DATA_DIR=data, CKPT_DIR=runs)
    assert result.returncode == 0, result.stderr
    configs = {}
    for words in map(shlex.split, result.stdout.splitlines()):
        if words[1:3] == ["-m", "training.candidates"]:
            name, rest = f"select {words[4]}", words[6:]  # after the one run that it picks from
        elif words[1:2] == ["-m"]:
            name, rest = words[2], words[3:]
        elif words[1:2] == [str(ROOT / "report.py")]:
            name, rest = "report", [f"--run={words[2]}", *words[3:]]
        else:
            continue
        config, _ = parse_config(QUICKSTART[name.split()[0]], rest, "test", "")
        configs[f"{name} {config.run_name}" if name == "finetune" else name] = config
    tuned, single = "mtgrec_best_104", "single_scratch_104"
    names = ["data.sample", "tokenizer.embed", "tokenizer.train", "tokenizer.export", "pretrain"]
    names += [f"finetune {tuned}", "select mtgrec", f"finetune {single}", "select single", "report"]
    assert list(configs) == names
    assert {config.dataset for name, config in configs.items() if name != "report"} == {"Sample"}
    assert {config.data_dir for name, config in configs.items() if name != "report"} == {data}
    tokenizer, pretraining = configs["tokenizer.train"], configs["pretrain"]
    assert configs["tokenizer.embed"] == tokenizer == configs["tokenizer.export"]
    assert all(
        config.resume for name, config in configs.items() if name.startswith(("tokenizer", "pretrain", "finetune"))
    )
    chosen = expand_epochs(pretraining.sem_id_epochs)
    assert chosen == tokenizer.kept_epochs[::8] == [80, 88, 96, 104, 112, 120]
    assert (pretraining.codebook_size, pretraining.run_name) == (tokenizer.codebook_size, "pretrain_tau1")
    model = f"{runs}/Sample/pretrain_tau1/model"
    for name, start in ((tuned, model), (single, "")):
        config = configs[f"finetune {name}"]
        assert (config.pretrained_model, expand_epochs(config.sem_id_epochs)) == (start, [104])
    assert configs[f"finetune {single}"].epochs == pretraining.epochs + configs[f"finetune {tuned}"].epochs
    assert configs["report"] == ReportConfig(
        f"{runs}/Sample/mtgrec.winner.json", f"{runs}/Sample/single.winner.json", users=3
    )
    assert list(tmp_path.iterdir()) == []


def test_quickstart_takes_no_other_flag(tmp_path):
    result = run_script("quickstart.sh", "--nonsense", folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: quickstart.sh takes no --nonsense, only --fresh; sizes are edited at its top\n"
