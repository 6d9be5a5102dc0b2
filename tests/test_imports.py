"""The directions of imports in docs/architecture.md, read off the source."""

import ast
from pathlib import Path

import pytest
from tiny_runs import ROOT

PACKAGES = (
    "baselines",
    "benchmarks",
    "data",
    "docs",
    "evaluation",
    "experiments",
    "inference",
    "model",
    "reporting",
    "serving",
    "tokenizer",
    "training",
    "utils",
)
ENTRY_SCRIPTS = {file.stem for file in ROOT.glob("*.py")}
SOURCES = [*ROOT.glob("*.py"), *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))]

# What a package's files may import of the project.
MAY_IMPORT = {
    "utils": {"utils"},
    "data": {"data", "utils"},
    "docs": {"docs", "tokenizer", "training", "utils"},
    "model": {"model", "utils"},
    "tokenizer": {"tokenizer", "data", "utils"},
    "evaluation": {"evaluation", "model", "data", "utils"},
    "training": {"training", "evaluation", "model", "data", "utils"},
    "inference": {"inference", "evaluation", "model", "data", "utils"},
    "serving": {"serving", "inference", "evaluation", "model", "data", "utils"},
    "baselines": {"baselines", "evaluation", "training", "data", "utils"},
    "reporting": {"reporting", "evaluation", "training", "tokenizer", "baselines", "data", "utils"},
    "benchmarks": {"benchmarks", "tokenizer", "training", "inference", "evaluation", "model", "data", "utils"},
    "experiments": {"experiments", "evaluation", "tokenizer", "data", "utils"},
}


def imported(file: Path) -> set[str]:
    """Return the full names of everything that a file imports, at any depth: {"torch.nn", "utils.files.read_json"}."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_package_is_looked_at():
    assert {"pretrain", "finetune"} <= ENTRY_SCRIPTS
    assert all((ROOT / package / "__init__.py").is_file() for package in PACKAGES)
    assert "utils.errors.InputError" in imported(ROOT / "utils" / "files.py")


@pytest.mark.parametrize("package", PACKAGES)
def test_directions(package: str):
    for file in (ROOT / package).rglob("*.py"):
        of_the_project = {name.split(".")[0] for name in imported(file)} & {*PACKAGES, *ENTRY_SCRIPTS, "tests"}
        assert of_the_project <= MAY_IMPORT[package], file


def test_nothing_imports_the_entry_scripts():
    for file in SOURCES:
        assert not {name.split(".")[0] for name in imported(file)} & ENTRY_SCRIPTS, file


def test_data_has_no_torch_modules():
    for file in (ROOT / "data").rglob("*.py"):
        assert not any(name.startswith("torch.nn") for name in imported(file)), file
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Attribute) and node.attr == "Module"), file


def test_no_star_imports():
    assert not [file for file in SOURCES if any(name.endswith(".*") for name in imported(file))]
