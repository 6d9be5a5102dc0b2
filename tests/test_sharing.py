"""The Dockerfile, and the commands of docs/sharing.md as they are written."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_runs import ROOT

import export
import recommend

PAGE = (ROOT / "docs" / "sharing.md").read_text()


@pytest.mark.usefixtures("hub")
def test_the_pages_commands_hand_a_model_on(
    joint_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    Path("ckpt").mkdir()
    joint_run.parent.rename("ckpt/MyShop")
    Path("ckpt/MyShop/finetune.winner.json").write_text(json.dumps({"winner": {"run": f"any/{joint_run.name}"}}))
    page = PAGE.replace("sku7", "item7").replace("sku12", "item12")
    done = []
    for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL):
        for line in block.splitlines():
            _, command, *flags = shlex.split(line)
            {"export.py": export, "recommend.py": recommend}[command].main(flags)
            done.append(capsys.readouterr().out)
    exported, local, pushed, from_hub = done
    assert exported.startswith("exported: 20 items, tokenizer rqvae/toy_8,8,8,8, epoch 2")
    assert pushed.endswith(": pushed; --model=hf:ann/shop takes it\n")
    assert local == from_hub
    files = re.findall(r"`([\w.]+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)))
    assert sorted(files) == sorted(path.name for path in Path("exported").iterdir())
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], found := {})
    assert found["items"][0] == [line.split()[1] for line in from_hub.splitlines()[4:]]


def test_the_dockerfile_is_as_its_linter_wants_it():
    linter = shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed")
    checked = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_the_container_gets_the_code_and_nothing_else():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks", "docs"}
    assert kept == rooms | {"*.py", "*.sh", "requirements.txt", "requirements-serve.txt", "LICENSE", "README.md"}
