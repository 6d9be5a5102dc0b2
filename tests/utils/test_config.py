from dataclasses import dataclass, field
from pathlib import Path

import pytest

from training.config import FinetuneConfig, PretrainConfig
from utils import errors
from utils.config import Epochs, dump_config, expand_epochs, parse_config
from utils.errors import InputError


@dataclass
class Settings:
    """A command's settings."""

    name: str | None = None
    epochs: Epochs | None = None
    rate: float = 0.1
    num_layers: int = 3
    num_users: int = 1
    sizes: int | list[int] = 4
    stages: list[int] = field(default_factory=lambda: [1, 2])
    overwrite: bool = False

    def problems(self) -> list[str]:
        """Name everything that is wrong."""
        return [f"{name} must be positive" for name in ("rate", "num_layers") if getattr(self, name) <= 0]


def parse(*argv: str) -> Settings:
    return parse_config(Settings, list(argv), "program", "What it does.")[0]


def test_defaults_and_given_flags():
    config, given = parse_config(Settings, ["--rate=0.5", "--num_layers", "2", "--overwrite"], "program", "")
    assert config == Settings(rate=0.5, num_layers=2, overwrite=True)
    assert given == {"rate", "num_layers", "overwrite"}
    assert parse_config(Settings, [], "program", "") == (Settings(), set())


def test_a_flag_given_at_its_default_is_given():
    assert parse_config(Settings, ["--num_layers=3"], "program", "")[1] == {"num_layers"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num_layer=2"], r"unknown flag --num_layer \(did you mean --num_layers\?\); --help lists the flags"),
        (["--xyzzy=2"], "unknown flag --xyzzy; --help"),
        (
            ["--ratee=1", "--stage=[1]"],
            r"--ratee \(did you mean --rate\?\); unknown flag --stage \(did you mean --stages",
        ),
        (["--num_user=3"], r"unknown flag --num_user \(did you mean --num_users\?\)"),  # no abbreviations
        (["--over"], r"unknown flag --over"),
        (["stray"], "stray"),
        (["--rate=fast"], "^rate=fast must be a number$"),
        (["--num_layers=2.5"], "^num_layers=2.5 must be a whole number$"),
        (["--stages=3"], r"^stages=3 must be a list of whole numbers such as \[1,2\]$"),
        (["--sizes=[1,b]"], r"^sizes=\[1, 'b'\] must be a whole number or a list of whole numbers such as \[1,2\]$"),
        (["--overwrite=maybe"], "^overwrite=maybe must be true or false$"),
        (["--debug=maybe"], "debug.*maybe"),
        (["--rate=-1", "--num_layers=0"], "rate must be positive; num_layers must be positive"),
    ],
)
def test_mistakes_are_one_error(argv: list[str], message: str):
    with pytest.raises(InputError, match=message):
        parse(*argv)


def test_every_problem_is_in_one_message():
    flags = ["--tau=-1", "--d_model=0", "--val_metric=mrr@10", "--dropout_rate=1", "--epoch_per_stage=[]"]
    with pytest.raises(InputError) as error:
        parse_config(PretrainConfig, [*flags, "--codebook_size=[4,4]", "--sem_id_epochs=9:7"], "pretrain.py", "")
    for part in ("tau=-1", "d_model=0", "mrr@10", "dropout_rate=1", "epoch_per_stage=[]", "codebook_size=", "9:7"):
        assert part in str(error.value)


@pytest.mark.parametrize("flags", [["--debug"], ["--debug=true"], ["--config_file=debug.yaml"]])
def test_debug_belongs_to_every_command(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(errors, "show_traceback", False)
    (tmp_path / "debug.yaml").write_text("debug: true\n")
    assert parse(*flags) == Settings()
    assert errors.show_traceback
    parse()
    assert not errors.show_traceback


def test_switches():
    assert parse("--overwrite").overwrite
    assert parse("--overwrite", "--rate=1").overwrite
    assert parse("--overwrite=true").overwrite
    assert not parse("--overwrite=false").overwrite
    assert not parse("--overwrite", "false").overwrite


EPOCHS = [
    ("7", [7]),
    ("7:10", [7, 8, 9, 10]),  # 430 in YAML 1.1, base 60
    ("9976:10000", list(range(9976, 10001))),
    ("[7,9]", [7, 9]),
    ("[7, 9]", [7, 9]),
    ("[1:3,7]", [1, 2, 3, 7]),
    ("[5:5]", [5]),
    ("null", None),
]


@pytest.mark.parametrize(("text", "expected"), EPOCHS)
def test_epochs_on_the_command_line_and_in_a_file(tmp_path: Path, text: str, expected: list[int] | None):
    assert expand_epochs(parse(f"--epochs={text}").epochs) == expected
    (tmp_path / "c.yaml").write_text(f"epochs: {text}\n")
    assert expand_epochs(parse(f"--config_file={tmp_path / 'c.yaml'}").epochs) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a", "'a' is not an epoch"),
        ("7:", "'7:' is not an epoch or an inclusive range"),
        ("-1", "'-1' is not an epoch"),
        ("1.5", "'1.5' is not an epoch"),
        ("10:7", "the range 10:7 runs backwards; write 7:10"),
        ([7, "6:8"], "names an epoch twice"),
        ([], "is empty"),
    ],
)
def test_what_is_no_list_of_epochs(value: Epochs, message: str):
    with pytest.raises(InputError, match=message):
        expand_epochs(value)


def test_flags_override_the_file(tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text("rate: 0.2\nnum_layers: 5\nsizes: [3, 4]\n")
    config, given = parse_config(Settings, [f"--config_file={file}", "--num_layers=6"], "program", "")
    assert config == Settings(rate=0.2, num_layers=6, sizes=[3, 4])
    assert given == {"rate", "num_layers", "sizes"}


def test_an_unknown_key_or_an_absent_file_is_an_error(tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text("ratee: 0.2\n")
    with pytest.raises(InputError, match="ratee"):
        parse(f"--config_file={file}")
    with pytest.raises(InputError, match=r"nothing\.yaml"):
        parse(f"--config_file={tmp_path / 'nothing.yaml'}")


@pytest.mark.parametrize(
    "config",
    [
        Settings(),
        Settings(name="run", epochs=[1, 2, 3], rate=1e-7, sizes=[3, 4, 5], overwrite=True),
        *(Settings(name=name) for name in ("7:10", "007", "1e3", "2024-01-01", "1_000", "true", "a: b", "0x1f")),
        Settings(epochs="7:10"),
        Settings(epochs=["1:3", 7]),
        PretrainConfig(),
        PretrainConfig(token_prefix=["rqvae/a_8,8", "b_8,8"], codebook_size=[8, 8, 8], steps=5, lr=1e-5),
        FinetuneConfig(sem_id_epochs=[9986], pretrained_model="ckpt/a b/run", test_num_beams=None),
    ],
)
def test_dumped_settings_come_back_the_same(tmp_path: Path, config):
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert parse_config(type(config), [f"--config_file={file}"], "program", "")[0] == config
