import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from evaluation.run import Run
from training.config import FinetuneConfig
from training.run_folder import RunFolder, log_hyperparameters, other_settings
from utils.config import parse_config
from utils.errors import InputError


@dataclass
class Settings:
    """A run's settings."""

    rate: float = 0.1
    layers: int = 2
    overwrite: bool = False
    reuse: bool = False
    resume: bool = False

    def problems(self) -> list[str]:
        """Nothing can be wrong."""
        return []


def folder_of(tmp_path: Path, is_main: bool = True) -> RunFolder:
    path = tmp_path / "ckpt" / "Tiny" / "run"
    return RunFolder(path, is_main, path / "log.txt")


def finish(run: RunFolder) -> None:
    (run.path / "results.json").write_text("{}")


def test_a_new_run(tmp_path: Path):
    run = folder_of(tmp_path)
    assert run.claim(Settings()) == "make"
    run.path.mkdir(parents=True)
    assert run.claim(Settings()) == "make"  # an empty folder is free
    run.create(Settings(rate=0.2))
    assert Run(run.path).settings == {"rate": 0.2, "layers": 2}  # not what to do with the folder
    assert not Run(run.path).is_finished
    finish(run)
    assert Run(run.path).is_finished


def test_the_configuration_can_be_passed_back(tmp_path: Path):
    run = folder_of(tmp_path)
    run.create(Settings(rate=0.2, layers=7, overwrite=True))
    config, _ = parse_config(Settings, [f"--config_file={run.path / 'config.yaml'}"], "program", "")
    assert config == Settings(rate=0.2, layers=7)


@pytest.mark.parametrize(
    ("there", "here", "same"),
    [
        ("old/Tiny/pre", "new/Tiny/pre", True),  # moved together
        ("old/Tiny/pre", "new/Tiny/pre/", True),
        ("old/Tiny/pre", "new/Tiny/other", False),
        ("old/Tiny/pre", "old/Tiny/pre", False),  # only the folder of the runs is another
    ],
)
def test_a_pre_trained_model_is_the_same_where_all_runs_moved(there: str, here: str, same: bool, tmp_path: Path):
    run = folder_of(tmp_path)
    run.create(FinetuneConfig(ckpt_dir="old", pretrained_model=there))
    config = FinetuneConfig(ckpt_dir="new", pretrained_model=here)
    assert (other_settings(run.path, config, ("ckpt_dir",)) == []) is same


def test_an_unfinished_run_is_refused_unless_overwritten(tmp_path: Path):
    run = folder_of(tmp_path)
    run.create(Settings())
    for config in (Settings(), Settings(reuse=True)):
        with pytest.raises(
            InputError,
            match=r"holds an unfinished run; go on with --resume \(RESUME=1\), or start anew with --overwrite",
        ):
            run.claim(config)
    assert run.claim(Settings(overwrite=True)) == "make"


def test_a_finished_run_is_refused_unless_overwritten_or_reused(tmp_path: Path):
    run = folder_of(tmp_path)
    run.create(Settings())
    finish(run)
    with pytest.raises(InputError, match=r"holds a finished run; set another RUN_NAME \(--run_name\), or start anew"):
        run.claim(Settings())
    assert run.claim(Settings(reuse=True)) == "reuse"
    with pytest.raises(
        InputError, match=r"other settings: rate=0\.3 \(there: 0\.1\); set another RUN_NAME \(--run_name\)"
    ):
        run.claim(Settings(rate=0.3, reuse=True))
    assert run.claim(Settings(overwrite=True)) == "make"
    run.create(Settings(overwrite=True))
    assert [path.name for path in run.path.iterdir()] == ["config.yaml"]  # what was there is gone


def test_other_settings(tmp_path: Path):
    run = folder_of(tmp_path)
    run.create(Settings())
    assert other_settings(run.path, Settings(overwrite=True, reuse=True)) == []
    assert other_settings(run.path, replace(Settings(), rate=1.0, layers=3)) == [
        "rate=1.0 (there: 0.1)",
        "layers=3 (there: 2)",
    ]
    (run.path / "config.yaml").write_text("rate: 0.1\nlayers: 2\nold: 1\n")
    assert other_settings(run.path, Settings()) == ["old=None (there: 1)"]
    (run.path / "config.yaml").write_text("rate: 0.1\n")  # of a time before there was a flag layers
    assert other_settings(run.path, Settings()) == []
    assert other_settings(run.path, Settings(layers=3)) == ["layers=3 (there: 2)"]


def test_broken_configuration_is_refused(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("a: [")
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match=r"has no readable config\.yaml"):
            _ = Run(folder).settings
    (tmp_path / "config.yaml").write_text("[a]")
    with pytest.raises(InputError, match=r"has no settings in its config\.yaml"):
        _ = Run(tmp_path).settings


def test_log_and_metrics(tmp_path: Path, capsys: pytest.CaptureFixture):
    run = folder_of(tmp_path)
    run.create(Settings())
    run.say("first line")
    run.say("second line")
    run.record("train", step=1, loss=0.5)
    run.record("valid", mean={"ndcg@10": 0.1})
    assert capsys.readouterr().out == "first line\nsecond line\n"
    assert [line[20:] for line in run.log_file.read_text().splitlines()] == ["first line", "second line"]
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line.pop("time") > 1e9 for line in lines] == [True, True]
    assert lines == [{"event": "train", "step": 1, "loss": 0.5}, {"event": "valid", "mean": {"ndcg@10": 0.1}}]


def test_other_processes_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture):
    run = folder_of(tmp_path, is_main=False)
    run.create(Settings())
    run.say("a line")
    run.record("train", step=1)
    assert not run.path.exists()
    assert capsys.readouterr().out == ""


def test_hyperparameters_come_with_the_final_metrics():
    calls = []
    writer = SimpleNamespace(add_hparams=lambda *arguments, **named: calls.append((arguments, named)))
    trackers = [SimpleNamespace(name="tensorboard", writer=writer), SimpleNamespace(name="wandb")]
    results = {"valid": {"ndcg@10": 0.2}, "test": {"ndcg@10": 0.1}}
    config = FinetuneConfig(sem_id_epochs=[1, 2])
    log_hyperparameters(SimpleNamespace(trackers=trackers, is_main_process=True), config, results)
    (((settings, metrics), named),) = calls
    assert (settings["lr"], settings["sem_id_epochs"]) == (0.001, "[1, 2]")
    assert metrics == {"final/valid_ndcg@10": 0.2, "final/test_ndcg@10": 0.1}
    assert named == {"run_name": "."}
