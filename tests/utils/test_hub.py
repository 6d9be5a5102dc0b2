"""Folders pushed to a hub and loaded from it, which is a small server here (tests/hub_server.py)."""

import shutil
from pathlib import Path

import pytest
from hub_server import Hub, use_hub
from huggingface_hub import constants
from tiny_runs import assert_same_weights

import export
import recommend
from inference.model_folder import export_model
from inference.recommend import load
from training.config import FinetuneConfig
from training.setup import resolve_config
from utils.errors import InputError
from utils.hub import local_folder


@pytest.fixture
def pushed(hub: Hub, joint_run: Path, capsys: pytest.CaptureFixture) -> str:
    """Push a run's model as ann/shop; return what the command said."""
    export.main([f"--run={joint_run}", "--push_to_hub=ann/shop"])
    return capsys.readouterr().out


def test_pushed_here_and_loaded_there(
    hub: Hub, pushed: str, joint_run: Path, dataset: Path, capsys: pytest.CaptureFixture
):
    (commit,) = hub.repositories["ann/shop"]
    assert pushed.splitlines()[1:] == [f"{hub.url}/ann/shop/commit/{commit}: pushed; --model=hf:ann/shop takes it"]
    files = hub.repositories["ann/shop"][commit]
    assert set(files) == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("items.jsonl", "mtgrec.json", "sha256.json"),
    }
    assert b'model = load("hf:ann/shop")' in files["README.md"]
    expected = load(joint_run).recommend([["item1", "item2"]], k=3)
    shutil.rmtree(joint_run.parents[1])
    shutil.rmtree(dataset)
    assert load("hf:ann/shop").recommend([["item1", "item2"]], k=3) == expected
    assert load(f"hf:ann/shop@{commit}").recommend([["item1", "item2"]], k=3) == expected
    recommend.main(["--model=hf:ann/shop", "--history=item1,item2", "--k=3"])
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[-3:]] == expected[0][0]


def test_a_new_repository_is_private_unless_everybody_is_to_see_it(
    hub: Hub, pushed: str, joint_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    export.main([f"--run={joint_run}", "--push_to_hub=ann/open", "--private=false"])
    assert hub.private == {"ann/shop"}
    monkeypatch.delenv("HF_TOKEN")
    use_hub(hub, tmp_path / "cache_of_bob", monkeypatch)
    assert local_folder("hf:ann/open").is_dir()
    with pytest.raises(InputError, match=r"^hf:ann/shop: the hub has no such repository that you may read \(401\)"):
        local_folder("hf:ann/shop")


def test_an_edited_card_goes_along(hub: Hub, joint_run: Path, tmp_path: Path):
    export_model(joint_run, tmp_path / "out")
    card = tmp_path / "out" / "README.md"
    card.write_text(card.read_text().replace("# license: name one here", "license: mit\n#"))
    load(tmp_path / "out")
    export.main([f"--run={tmp_path / 'out'}", "--push_to_hub=ann/shop"])
    export.main([f"--run={tmp_path / 'out'}", "--push_to_hub=ann/shop"])
    for files in hub.repositories["ann/shop"].values():
        assert b"license: mit\n" in files["README.md"]
        assert b"hf:ann/shop" in files["README.md"]


def test_training_starts_from_the_hub(pushed: str, dataset: Path, joint_run: Path):
    config = FinetuneConfig(dataset=dataset.name, data_dir=str(dataset.parent), pretrained_model="hf:ann/shop")
    config, _ = resolve_config(config, set())
    assert (config.num_layers, config.d_model) == (1, 16)
    assert_same_weights(Path(config.pretrained_model), joint_run / "model")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("hf:ann/nothing", r"^hf:ann/nothing: the hub has no such repository that you may read \(404\)"),
        ("hf:ann/shop@v1", r"^hf:ann/shop@v1: the hub has it, but not this revision; name a branch"),
        ("hf:shop", r"^hf:shop names no folder on the hub; write hf:user/name or hf:user/name@revision"),
        ("hf:../shop", r"^hf:\.\./shop: the hub did not send or take all of it \(.*cannot start or end"),
    ],
)
def test_no_such_folder(name: str, problem: str, pushed: str):
    with pytest.raises(InputError, match=problem):
        load(name)


def test_a_broken_download_is_refused(
    hub: Hub, pushed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its five tries
    hub.cut = "model.safetensors"
    with pytest.raises(InputError, match=r"^hf:ann/shop: the hub did not send or take all of it \(peer closed"):
        load("hf:ann/shop")
    hub.cut = ""
    load("hf:ann/shop")
    items = next(iter(hub.repositories["ann/shop"].values()))["items.jsonl"]
    hub.commit("ann/shop", {"items.jsonl": items.replace(b"text of item3", b"text of item4")})
    with pytest.raises(InputError, match=r"items\.jsonl is not what was written: its checksum differs"):
        load("hf:ann/shop")


def test_without_the_hub_the_last_download_is_taken(hub: Hub, pushed: str, monkeypatch: pytest.MonkeyPatch):
    folder = local_folder("hf:ann/shop")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_folder("hf:ann/shop") == folder
    with pytest.raises(InputError, match=r"^hf:ann/other: the hub did not .* at the network and at HF_HUB_OFFLINE"):
        local_folder("hf:ann/other")


def test_who_may_not_push_is_told_why(hub: Hub, joint_run: Path, monkeypatch: pytest.MonkeyPatch):
    flags = [f"--run={joint_run}", "--push_to_hub=bob/shop"]
    with pytest.raises(InputError, match=r"^bob/shop: the hub has no such repository that you may write \(403\)"):
        export.main(flags)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match=r"\(401\); check the name, and log in with `hf auth login`, or set HF_TOKEN"):
        export.main(flags)
    assert hub.repositories == {}
    with pytest.raises(InputError, match=r"push_to_hub=shop must be user/name"):
        export.main([flags[0], "--push_to_hub=shop"])
    with pytest.raises(InputError, match=r"--output is needed, or --push_to_hub"):
        export.main(flags[:1])


def test_a_local_path_stays_as_it_is_and_imports_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)  # whoever imports it fails
    assert local_folder("ckpt/hf:x") == Path("ckpt/hf:x")
    with pytest.raises(ImportError):
        local_folder("hf:ann/shop")
