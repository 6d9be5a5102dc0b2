"""What the documentation says is so: commands parse, links lead somewhere, quoted errors exist, nothing is stale."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from tiny_runs import ROOT

from baselines.config import BaselineConfig
from benchmarks.serving_fuzz import FuzzConfig
from benchmarks.serving_load import LoadConfig
from data.prepare import PrepareConfig
from data.recbole import RecBoleConfig
from data.sample import SampleConfig
from docs.hyperparameters import FILE, NOTES, TOKENIZER_NOTES, generate
from evaluate import EvaluateConfig
from experiments.run import RunConfig, with_studies
from experiments.study import load_study
from export import ExportConfig
from recommend import RecommendConfig
from report import ReportConfig, with_lists
from serving.config import ServeConfig
from tokenizer.config import TokenizerConfig
from tokenizer.export import ExportConfig as IdentifiersConfig
from training.config import FinetuneConfig, PretrainConfig
from utils.config import make_parser, parse_config
from utils.errors import InputError

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "experiments" / "RESULTS.md"
SCRIPTS = {"tokenizer/run.sh": TokenizerConfig, "pretrain.sh": PretrainConfig, "finetune.sh": FinetuneConfig}
COMMANDS = SCRIPTS | {
    "data/prepare.sh": PrepareConfig,
    "pretrain.py": PretrainConfig,
    "report.py": ReportConfig,
    "recommend.py": RecommendConfig,
    "evaluate.py": EvaluateConfig,
    "baseline.py": BaselineConfig,
    "export.py": ExportConfig,
    "serve.py": ServeConfig,
    "serve.sh": ServeConfig,
    "-m benchmarks.serving_load": LoadConfig,
    "-m benchmarks.serving_fuzz": FuzzConfig,
    "-m data.prepare": PrepareConfig,
    "-m data.sample": SampleConfig,
    "-m data.recbole": RecBoleConfig,
    "-m tokenizer.export": IdentifiersConfig,
    "-m experiments.run": RunConfig,
    "--module pretrain": PretrainConfig,
}
# What a script gives its command, or a file of flags that is not there.
GIVEN = {
    "tokenizer/run.sh": ["--dataset=Any"],
    "-m tokenizer.export": ["--dataset=Any"],
    "data/prepare.sh": ["--dataset=Any", "--source=amazon2023", "--interactions=any.csv.gz", "--items=any.jsonl.gz"],
}


def commands(page: Path) -> Iterator[list[str]]:
    """Return the words of each command in a page's bash blocks and between its backticks."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    blocks += [
        " ".join(code.split()) for code in re.findall(r"`([^`]+)`", text) if re.search(r"\b(bash|python) ", code)
    ]
    for block in blocks:
        block = re.sub(r"<<'END'\n.*?\nEND\n", "\n", block, flags=re.DOTALL).replace("\\\n", " ").replace("&&", "\n")
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            yield words
            yield from (shlex.split(word) for word in words if " --module " in word)  # bash -c '...'


def parsed(words: list[str]) -> tuple[type, list[str]] | None:
    """Return the dataclass of a command and its flags, loop variables as 1; None for commands of others.

    What stands for more (...) and the file of other flags, which is not there, are left out.
    """
    words = [re.sub(r"\$[a-z]+", "1", word) for word in words if not word.startswith("$")]
    for number, word in enumerate(words):
        name = f"{words[number - 1]} {word}" if number and words[number - 1] in ("-m", "--module") else word
        if name in COMMANDS:
            flags = [flag for flag in words[number + 1 :] if flag != "..." and not flag.startswith("--config_file=")]
            if name == "-m experiments.run":
                flags = with_studies(flags)
            if "--kind=letter" in flags:
                flags.append("--vq_type=vq")
            flags = GIVEN.get(name, []) + (with_lists(flags) if name == "report.py" else flags)
            return COMMANDS[name], flags
    return None


def check(words: list[str]) -> type | None:
    """Raise InputError where a command would be refused for what it is given, and return its dataclass."""
    found = parsed(words)
    if not found:
        return None
    config_class, flags = found
    config, _ = parse_config(config_class, flags, "", "")
    if config_class is RunConfig:
        for study in config.studies:
            load_study(ROOT / study, config.budget, config.seeds)  # raises where the file or the budget does not exist
    return config_class


def test_hyperparameters_are_those_of_the_code():
    assert FILE.read_text() == generate(), "run python -m docs.hyperparameters"
    configs = (TokenizerConfig, PretrainConfig, FinetuneConfig)
    flags = {field.name for config_class in configs for field in fields(config_class)}
    assert flags == NOTES.keys() | TOKENIZER_NOTES.keys()


@pytest.mark.parametrize("page", [*PAGES, RESULTS], ids=lambda page: page.name)
def test_flags_of_every_command_parse(page):
    for words in commands(page):
        check(words)


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("python recommend.py --model=run --user=ann", "unknown flag --user"),
        ("python recommend.py --model=run", "users"),
        ("python evaluate.py --model=run --constrained=perhaps", "constrained"),
        ("python export.py --run=run --out=exported", "unknown flag --out"),
        (
            "python -m data.prepare --dataset=MyShop --interactions=a.csv --items=b.csv --user=customer",
            "unknown flag --user",
        ),
        ("python -m experiments.run experiments/maine.yaml", "maine.yaml cannot be read"),
        ("python -m experiments.run experiments/main.yaml --budget=tpu", "has no budget tpu"),
        ("python -m experiments.run experiments/main.yaml --only_tables", "unknown flag --only_tables"),
        ("RESUME=1 bash finetune.sh $MODEL --batch=3", "unknown flag --batch"),
    ],
)
def test_wrong_commands_are_found(command, found):
    with pytest.raises(InputError, match=found):
        check(shlex.split(command))


def test_no_command_writes_where_the_project_has_something():
    pages = [*PAGES, *ROOT.glob("*.py")]
    outputs = {name for page in pages for name in re.findall(r"--output=([\w./]+)", page.read_text())}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert "exported" in outputs
    assert not {name.split("/")[0] for name in outputs} & {*packages, "tests", "docs", "asset"}


def test_commands_are_found():
    found = Counter(check(words) for page in [*PAGES, RESULTS] for words in commands(page))
    assert min(found[config] for config in SCRIPTS.values()) >= 4
    assert set(COMMANDS.values()) <= found.keys()
    assert found[RunConfig] > 10
    assert parsed(shlex.split("TAU_LIST=3 bash pretrain.sh $SIZE --tau=3")) == (PretrainConfig, ["--tau=3"])


def test_variables_of_every_command_are_read_by_a_script():
    text = "".join(path.read_text() for path in [*ROOT.glob("*.sh"), *ROOT.glob("*/*.sh")])
    own = {
        "OMP_NUM_THREADS",
        "MODEL",
        "BATCHES",
        "SIZE",
        "LETTER",
        "MASTER",
        "PYTHONPATH",
        "WINNER",
    }  # read by others, or by the page
    for page in PAGES:
        names = {word.split("=")[0] for words in commands(page) for word in words if re.match(r"[A-Z_]+=", word)}
        assert [name for name in names - own if f"${{{name}" not in text and f"switch {name} " not in text] == [], page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link
    for name in re.findall(r"`((?:\w+/)*\w+\.(?:py|sh))`", text):
        assert (ROOT / name).exists() or f'"""{name}:' in text, (
            name
        )  # a file of the project, or one that the page shows


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_names_in_the_code_exist(page):
    """`file.py`: `Class.method`, `function` names what the file defines."""
    found = re.findall(r"`((?:\w+/)*\w+\.py)`: ((?:`[\w.]+`(?:, )?)+)", (ROOT / page).read_text())
    assert len(found) >= 10
    for file, names in found:
        source = (ROOT / file).read_text()
        for name in re.findall(r"`(?:\w+\.)?(\w+)`", names):
            assert re.search(rf"^ *(?:def|class) {name}\b|^{name}\b.*=", source, re.MULTILINE), f"{file}: {name}"


@pytest.mark.parametrize(
    ("config", "page"),
    [
        *[(RecommendConfig, "recommending.md"), (ServeConfig, "serving.md"), (ExportConfig, "sharing.md")],
        *[(EvaluateConfig, None), (FinetuneConfig, "hyperparameters.md")],
    ],
)
def test_what_takes_a_model_says_that_it_may_be_on_a_hub(config: type, page: str | None):
    assert "hf:user/name" in make_parser(config, "test", "").format_help()
    assert page is None or "hf:user/name" in (ROOT / "docs" / page).read_text()


def test_errors_of_the_troubleshooting_page_are_in_the_code():
    sources = [path for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("*/*.sh")]]
    text = "".join(path.read_text() for path in sources if path.parent.name not in ("docs", "tests"))
    quotes = re.findall(r"\*\*`([^*]+)`\*\*", (ROOT / "docs" / "troubleshooting.md").read_text())
    assert len(quotes) > 20
    for quote in quotes:
        for part in re.split(r" ?\.\.\. ?| nan", quote):
            assert part.strip() in text, quote
