"""docs/mtgrec.ipynb from top to bottom, on a tiny shop."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny_runs import ROOT, project_beside

from inference.recommend import load

FILE = ROOT / "docs" / "mtgrec.ipynb"
TINY = {
    **{"DATASET": "Tiny", "SHOPPERS": 80, "ITEMS": 48, "CODES": 16, "TOKENIZERS": 2, "TOKENIZER_EPOCHS": 4},
    **{"WIDTH": 16, "STAGES": "[1,1]", "EPOCHS": 2, "FINETUNING_EPOCHS": 1, "WARMUP": 4},
    **{"SKIP_INSTALL": 1, "OMP_NUM_THREADS": 1},
}


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(FILE, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_outputs_are_stripped(notebook: nbformat.NotebookNode):
    nbformat.validate(notebook)
    assert [cell.id for cell in code(notebook) if cell.outputs or cell.execution_count] == []


def test_links_lead_somewhere(notebook: nbformat.NotebookNode):
    links = re.findall(r"\]\(([^)]+)\)", "".join(cell.source for cell in notebook.cells))
    assert "sharing.md" in links
    assert [link for link in links if not (FILE.parent / link).is_file()] == []


@pytest.mark.slow
def test_from_top_to_bottom(notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cells = code(notebook)
    for name in re.findall(r'^    "([A-Z_]+)":', cells[0].source, re.MULTILINE):
        monkeypatch.delenv(name, raising=False)
    for name, value in TINY.items():
        monkeypatch.setenv(name, str(value))
    project_beside(tmp_path)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}})
    client.execute()  # raises where a cell does
    said = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    winner = tmp_path / "ckpt" / "Tiny" / "finetune.winner.json"
    history = next(iter(json.loads((tmp_path / "datasets/Tiny/all_item_seqs.json").read_text()).values()))
    items, _ = load(winner).recommend([history], k=5)
    assert [line.split()[1] for line in said[-2].splitlines() if line.startswith(" -")] == items[0]
    assert [output.data.keys() >= {"image/png"} for output in cells[-3].outputs] == [True, True]
    (run,) = (tmp_path / "ckpt" / "Tiny").glob("finetune_best_*")
    assert f"report: ckpt/Tiny/{run.name}/report.html" in said[-4]
    assert cells[-1].outputs[0].data["text/markdown"].startswith(f"\n# {run.name}: recommendations for Tiny\n")
