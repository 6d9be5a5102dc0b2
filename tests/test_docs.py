"""What the documentation says is so: commands parse, links lead somewhere, quoted errors exist, nothing is stale."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from tiny_runs import ROOT

from docs.hyperparameters import FILE, NOTES, TOKENIZER_NOTES, generate
from report import ReportConfig, with_lists
from tokenizer.config import TokenizerConfig
from training.config import FinetuneConfig, PretrainConfig
from utils.config import make_parser

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {"tokenizer/run.sh": TokenizerConfig, "pretrain.sh": PretrainConfig, "finetune.sh": FinetuneConfig}


def commands(page: Path) -> Iterator[list[str]]:
    """Return the words of each command in a page's bash blocks."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        block = re.sub(r"<<'END'\n.*?\nEND\n", "\n", block, flags=re.DOTALL).replace("\\\n", " ")
        yield from (shlex.split(line, comments=True) for line in block.splitlines())


def parsed(words: list[str]) -> tuple[type, list[str]] | None:
    """Return the dataclass of a command and its flags, loop variables as 1; None for commands of others."""
    words = [re.sub(r"\$[a-z]+", "1", word) for word in words if not word.startswith("$")]
    for number, word in enumerate(words):
        if word in SCRIPTS:
            return SCRIPTS[word], words[number + 1 :]
        if word == "report.py":
            return ReportConfig, with_lists(words[number + 1 :])
    return None


def test_hyperparameters_are_those_of_the_code():
    assert FILE.read_text() == generate(), "run python -m docs.hyperparameters"
    configs = (TokenizerConfig, PretrainConfig, FinetuneConfig)
    flags = {field.name for config_class in configs for field in fields(config_class)}
    assert flags == NOTES.keys() | TOKENIZER_NOTES.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_of_every_command_parse(page):
    for words in commands(page):
        found = parsed(words)
        if found:
            config_class, flags = found
            needed = ["--dataset=Any"] if config_class is TokenizerConfig else []
            make_parser(config_class, "", "").parse_args([*needed, *flags])  # raises where a flag is wrong


def test_no_command_writes_where_the_project_has_something():
    pages = [*PAGES, *ROOT.glob("*.py")]
    outputs = {name for page in pages for name in re.findall(r"--output=([\w./]+)", page.read_text())}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert "exported" in outputs
    assert not {name.split("/")[0] for name in outputs} & {*packages, "tests", "docs", "asset"}


def test_commands_are_found():
    found = [parsed(words) for page in PAGES for words in commands(page)]
    counts = {config: sum(pair is not None and pair[0] is config for pair in found) for config in SCRIPTS.values()}
    assert min(counts.values()) >= 4
    assert parsed(shlex.split("TAU_LIST=3 bash pretrain.sh $SIZE --tau=3")) == (PretrainConfig, ["--tau=3"])


def test_variables_of_every_command_are_read_by_a_script():
    text = "".join(path.read_text() for path in [*ROOT.glob("*.sh"), *ROOT.glob("*/*.sh")])
    own = {
        "OMP_NUM_THREADS",
        "MODEL",
        "BATCHES",
        "SIZE",
        "MASTER",
        "PYTHONPATH",
        "WINNER",
    }  # read by others, or by the page
    for page in PAGES:
        names = {word.split("=")[0] for words in commands(page) for word in words if re.match(r"[A-Z_]+=", word)}
        assert [name for name in names - own if f"${{{name}" not in text] == [], page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link
    for name in re.findall(r"`((?:\w+/)*\w+\.(?:py|sh))`", text):
        assert (ROOT / name).exists() or f'"""{name}:' in text, (
            name
        )  # a file of the project, or one that the page shows


def test_errors_of_the_troubleshooting_page_are_in_the_code():
    sources = [path for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("*/*.sh")]]
    text = "".join(path.read_text() for path in sources if path.parent.name not in ("docs", "tests"))
    quotes = re.findall(r"\*\*`([^*]+)`\*\*", (ROOT / "docs" / "troubleshooting.md").read_text())
    assert len(quotes) > 20
    for quote in quotes:
        for part in re.split(r" ?\.\.\. ?| nan", quote):
            assert part.strip() in text, quote
