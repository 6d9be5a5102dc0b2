"""Bad input through the command line: one sentence, exit code 2, nothing half-made.

Each row of the tables is: name, what is done to good input, the flags, what the sentence has to say.
"""

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_dataset import make_dataset
from tiny_runs import MODEL, flags

import finetune
import pretrain
import tokenizer.export
import tokenizer.train
from data.token_table import level_sizes
from model.recommender import Architecture, build_recommender
from tokenizer import embed
from utils.runtime import run_command

TOKENIZER = {
    **{"sent_emb_model": "some/encoder", "sent_emb_dim": 6, "sent_emb_pca": 4, "codebook_size": 8},
    **{"hidden_sizes": "[8,4]", "batch_size": 16, "epochs": 2, "save_last": 1, "device": "cpu", "ckpt_name": "made"},
}
Spoil = Callable[[Path], object]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Return a folder with a dataset that has embeddings, and a pre-trained model for it."""
    dataset = make_dataset(tmp_path / "data" / "Tiny")
    np.random.default_rng(0).normal(size=(20, 6)).astype("<f4").tofile(dataset / "encoder.sent_emb")
    torch.manual_seed(0)
    model = build_recommender(Architecture(level_sizes(3, 8), **MODEL))
    model.semantic_ids_sha256 = ["another tokenizer's"]
    model.save_pretrained(tmp_path / "model")
    return tmp_path


def refusal(main: Callable, argv: list[str], capsys: pytest.CaptureFixture) -> str:
    """Run a command that has to exit with 2; return its one sentence without "error: "."""
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: main(argv))
    said = capsys.readouterr().err
    assert exit_.value.code == 2, said
    assert re.fullmatch(r"error: [^\n]+\n", said)
    return said[7:-1]


def check(world: Path, main: Callable, argv: list[str], spoil: Spoil, parts: list[str], capsys) -> None:
    """Spoil the input, and assert that the command says `parts` and leaves the folder as it was."""
    spoil(world)
    before = {file: file.is_dir() or file.read_bytes() for file in world.rglob("*")}
    said = refusal(main, argv, capsys)
    for part in parts:
        assert part in said
    left = {file: file.is_dir() or file.read_bytes() for file in world.rglob("*") if file.name != ".lock"}
    assert {file for file in left if file not in before} <= {world / "data" / "Tiny" / "made"}
    assert {file: left[file] for file in before} == before


def nothing(world: Path) -> None:
    pass


def edit(name: str, change: Callable[[dict], object]) -> Spoil:
    """Return a change of a JSON file of the dataset."""

    def spoil(world: Path) -> None:
        (file,) = (world / "data" / "Tiny").glob(name)
        value = json.loads(file.read_text())
        change(value)
        file.write_text(json.dumps(value))

    return spoil


def write(name: str, content: bytes | Callable[[bytes], bytes]) -> Spoil:
    """Return the writing of a file; a function makes the new content of the old."""

    def spoil(world: Path) -> None:
        (file,) = world.glob(name)
        file.write_bytes(content if isinstance(content, bytes) else content(file.read_bytes()))

    return spoil


def flip(content: bytes) -> bytes:
    """Change one bit three quarters into the file, where the weights are."""
    changed = bytearray(content)
    changed[len(content) * 3 // 4] ^= 1
    return bytes(changed)


SETTINGS = [
    ("unknown flag", ["--lrr=1"], ["unknown flag --lrr (did you mean --lr?)"]),
    ("wrong type", ["--epochs=many"], ["epochs", "many"]),
    ("a fraction of an epoch", ["--epochs=2.5"], ["epochs", "2.5"]),
    ("not a list", ["--topk=x"], ["topk"]),
    ("no cut-offs", ["--topk=[]"], ["topk=[]"]),
    ("no metrics", ["--metrics=[]"], ["metrics=[]"]),
    ("no tokenizers", ["--sem_id_epochs=[]"], ["the list of epochs is empty"]),
    ("no prefixes", ["--token_prefix=[]"], ["token_prefix is an empty list"]),
    ("a range that runs backwards", ["--sem_id_epochs=3:1"], ["the range 3:1 runs backwards; write 1:3"]),
    ("a tokenizer twice", ["--sem_id_epochs=[1,1]"], ["names an epoch twice"]),
    ("a tokenizer without a file", ["--sem_id_epochs=7"], ["no file for epoch 7; present: 1..3 (3 epochs)"]),
    ("more cut-off than beams", ["--topk=[50]", "--val_metric=ndcg@50"], ["more items than there are beams"]),
    ("val_metric not among metrics", ["--val_metric=ndcg@7"], ["val_metric=ndcg@7 is not among"]),
    ("val_metric unheard of", ["--val_metric=auc"], ["'auc' is no metric"]),
    ("codebook sizes of another length", ["--codebook_size=[8,8]"], ["n_codebooks=3 takes 3 or 4"]),
    ("no such dataset", ["--dataset=Tinny"], ["Tinny does not exist; did you mean Tiny?"]),
    ("no such data folder", ["--data_dir=/nowhere"], ["/nowhere/Tiny does not exist"]),
    ("no such settings file", ["--config_file=/nowhere.yaml"], ["/nowhere.yaml"]),
    ("no such tracker", ["--log_with=nonsense"], ["--log_with=nonsense"]),
    ("no such model", ["--pretrained_model=/nowhere"], ["/nowhere does not exist; leave the flag out"]),
    ("start anew and go on", ["--overwrite", "--resume"], ["overwrite starts anew and resume goes on"]),
    (
        "everything at once",
        ["--lr=-1", "--dropout_rate=1", "--epoch_per_stage=[2,0]", "--tau=0", "--num_heads=0", "--val_ratio=2"],
        ["lr=-1.0", "dropout_rate=1.0", "epoch_per_stage=[2, 0]", "tau=0.0", "num_heads=0", "val_ratio=2.0"],
    ),
    ("no number", ["--lr=nan"], ["lr", "nan"]),
    ("not finite", ["--lr=1e999", "--checkpoint_minutes=-1"], ["lr=inf must be positive", "checkpoint_minutes=-1.0"]),
]


@pytest.mark.parametrize(("name", "more", "parts"), SETTINGS, ids=[row[0] for row in SETTINGS])
def test_settings(world, capsys, name, more, parts):
    argv = [*flags(world / "data" / "Tiny", world / "runs", run_name="r"), *more]
    check(world, pretrain.main, argv, nothing, parts, capsys)


MAPPING, SEQUENCES, IDS = "id_mapping.json", "all_item_seqs.json", "rqvae/*_2.sem_ids"
FILES = [
    ("no id mapping", lambda w: (w / "data/Tiny" / MAPPING).unlink(), ["id_mapping.json does not exist"]),
    ("no sequences", lambda w: (w / "data/Tiny" / SEQUENCES).unlink(), ["all_item_seqs.json does not exist"]),
    ("JSON truncated", write(f"data/Tiny/{SEQUENCES}", lambda c: c[:99]), ["not a whole JSON file in UTF-8"]),
    ("JSON not UTF-8", write(f"data/Tiny/{MAPPING}", b'{"\xff": 1}'), ["not a whole JSON file in UTF-8"]),
    ("JSON without an end", write(f"data/Tiny/{MAPPING}", b"[" * 10**5), ["not a whole JSON file in UTF-8"]),
    ("JSON of another shape", write(f"data/Tiny/{SEQUENCES}", b"[1, 2]"), ["holds no users; expected {user:"]),
    ("a key twice", write(f"data/Tiny/{SEQUENCES}", b'{"user1": [], "user1": []}'), ["the key 'user1' comes twice"]),
    ("a sequence that is a text", edit(SEQUENCES, lambda s: s.update(user4="item1")), ["user 'user4' has 'item1'"]),
    ("an unknown item", edit(SEQUENCES, lambda s: s["user4"].append("itemX")), ["user 'user4' has ['itemX'], not in"]),
    ("an unknown user", edit(SEQUENCES, lambda s: s.update(userX=[])), ["user 'userX' is not in user2id"]),
    ("nobody to learn from", edit(SEQUENCES, lambda s: [v.clear() for v in s.values()]), ["no user has enough items"]),
    ("an id twice", edit(MAPPING, lambda m: m["item2id"].update(item3=4)), ["ids of item2id are not 1..20, each once"]),
    ("a gap in the ids", edit(MAPPING, lambda m: m["user2id"].update(user3=31)), ["user2id are not 1..30, each once"]),
    ("an item without a semantic ID", edit(IDS, lambda t: t.pop("item3")), ["1 of 20 items have no semantic ID"]),
    ("an item too many", edit(IDS, lambda t: t.update(itemX=[1] * 4)), ["1 items are not in the dataset", "'itemX'"]),
    (
        "a code out of range",
        edit(IDS, lambda t: t.update(item3=[8, 0, 0, 1])),
        ["out of range", "'item3': [8, 0, 0, 1]"],
    ),
    ("a code below 0", edit(IDS, lambda t: t.update(item3=[0, -1, 0, 1])), ["out of range", "'item3'"]),
    ("a code that is no integer", edit(IDS, lambda t: t.update(item3=[0, 0.5, 0, 1])), ["no list of 4 integer codes"]),
    (
        "a level too few",
        edit(IDS, lambda t: t.update(item3=[0, 0, 1])),
        ["no list of 4 integer codes", "--n_codebooks"],
    ),
    ("one semantic ID for two", edit(IDS, lambda t: t.update(item3=t["item4"])), ["'item3' and 'item4'"]),
]


@pytest.mark.parametrize(("name", "spoil", "parts"), FILES, ids=[row[0] for row in FILES])
def test_dataset_files(world, capsys, name, spoil, parts):
    argv = flags(world / "data" / "Tiny", world / "runs", run_name="r")
    check(world, finetune.main, argv, spoil, parts, capsys)


def test_other_codebook_sizes_than_the_files(world, capsys):
    argv = flags(world / "data" / "Tiny", world / "runs", run_name="r", codebook_size=4)
    check(world, finetune.main, argv, nothing, ["a code out of range", "check --codebook_size"], capsys)


class Malicious:
    """Makes a folder where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (self.target,)

    def __init__(self, target: Path):
        self.target = str(target)


WEIGHTS = "model/model.safetensors"
MODELS = [
    ("other identifiers", nothing, ["trained with other semantic IDs", "_2.sem_ids", "--allow_other_identifiers"]),
    ("one bit flipped", write(WEIGHTS, flip), ["model.safetensors is not what was written: its checksum differs"]),
    ("weights truncated", write(WEIGHTS, lambda c: c[:999]), ["model.safetensors is no whole file of weights"]),
    ("weights missing", lambda w: (w / WEIGHTS).unlink(), ["model.safetensors is no whole file of weights"]),
    ("configuration broken", write("model/config.json", b"{"), ["config.json is not a whole JSON file in UTF-8"]),
    ("configuration of another program", write("model/config.json", b"{}"), ["has no level_sizes"]),
]


@pytest.mark.parametrize(("name", "spoil", "parts"), MODELS, ids=[row[0] for row in MODELS])
def test_models(world, capsys, name, spoil, parts):
    argv = flags(world / "data" / "Tiny", world / "runs", model=False, run_name="r", sem_id_epochs=2)
    argv.append(f"--pretrained_model={world / 'model'}")
    check(world, finetune.main, argv, spoil, parts, capsys)


def test_a_model_of_other_identifiers_serves_by_request(world, capsys):
    argv = flags(world / "data" / "Tiny", world / "runs", model=False, run_name="r", sem_id_epochs=2, epochs=1)
    argv.append(f"--pretrained_model={world / 'model'}")
    finetune.main([*argv, "--allow_other_identifiers"])
    trained = world / "runs" / "Tiny" / "r"
    finetune.main([*argv[:-1], f"--pretrained_model={trained}", "--run_name=again"])  # its own are no others
    argv = [*argv[:-1], f"--pretrained_model={trained}", "--run_name=other", "--sem_id_epochs=[2,3]"]
    assert "was trained with other semantic IDs" in refusal(finetune.main, argv, capsys)


@pytest.mark.parametrize("content", ["malicious", "text", "truncated"])
def test_checkpoints_of_the_reference_code(world, capsys, content):
    """A pickle that would run something runs nothing."""
    file = world / "checkpoint.pth"
    if content == "malicious":
        file.write_bytes(pickle.dumps({"model": Malicious(world / "ran")}))
    elif content == "text":
        file.write_text("weights")
    else:
        torch.save({"model": {"t5.shared.weight": torch.zeros(9, 9)}}, file)
        file.write_bytes(file.read_bytes()[:200])
    argv = [*flags(world / "data" / "Tiny", world / "runs", run_name="r"), f"--pretrained_model={file}"]
    check(world, finetune.main, argv, nothing, ["checkpoint.pth is not a readable checkpoint of tensors"], capsys)
    assert not (world / "ran").exists()


@pytest.mark.parametrize(
    "content", ["!!python/object/apply:os.mkdir [{ran}]", "lr: !!python/object/apply:os.mkdir [{ran}]", "lr: [", "- 1"]
)
def test_settings_files_run_nothing(world, capsys, content):
    (world / "settings.yaml").write_text(content.replace("{ran}", str(world / "ran")))
    argv = [f"--config_file={world / 'settings.yaml'}", *flags(world / "data" / "Tiny", world / "runs", run_name="r")]
    check(world, finetune.main, argv, nothing, [], capsys)
    assert not (world / "ran").exists()


def test_a_settings_file_that_stands_for_gigabytes_is_refused(world, capsys):
    lines = ["a: &a0 [x, x]", *(f"b{n}: &a{n + 1} [*a{n}, *a{n}]" for n in range(40)), "lr: *a40"]
    (world / "settings.yaml").write_text("\n".join(lines))
    argv = [f"--config_file={world / 'settings.yaml'}", *flags(world / "data" / "Tiny", world / "runs", run_name="r")]
    check(world, finetune.main, argv, nothing, ["aliases are not allowed"], capsys)


def rows(change: Callable[[np.ndarray], object]) -> Spoil:
    """Return a change of the embeddings, float32 [20, 6]."""

    def spoil(world: Path) -> None:
        file = world / "data" / "Tiny" / "encoder.sent_emb"
        embeddings = np.fromfile(file, dtype="<f4").reshape(20, 6)
        change(embeddings)
        embeddings.tofile(file)

    return spoil


EMBEDDINGS = "data/Tiny/encoder.sent_emb"
TRAININGS = [
    ("no embeddings", lambda w: (w / EMBEDDINGS).unlink(), {}, ["encoder.sent_emb does not exist; make it with"]),
    ("another size", nothing, {"sent_emb_dim": 5}, ["480 bytes, expected 20 items x 5 x 4 = 400", "sent_emb_dim=6"]),
    ("NaN", rows(lambda e: e.__setitem__((3, 2), np.nan)), {}, ["1 items have NaN or infinity", "first item id 4"]),
    ("infinity", rows(lambda e: e.__setitem__(7, np.inf)), {}, ["1 items have NaN or infinity", "first item id 8"]),
    ("all equal", rows(lambda e: e.__setitem__(slice(None), 1)), {}, ["all items have the same embedding"]),
    ("all equal, no PCA", rows(lambda e: e.fill(1)), {"sent_emb_pca": -1}, ["all items have the same embedding"]),
    ("fewer items than codes", nothing, {"codebook_size": 64}, ["cannot fill 64 codes; lower --codebook_size"]),
    ("more components", nothing, {"sent_emb_pca": 7}, ["sent_emb_pca=7 must be -1 (none) or 1..sent_emb_dim=6"]),
    ("no CUDA", nothing, {"device": "cuda"}, ["--device=cuda: this machine shows 0 GPUs; use --device=cpu"]),
    ("no device", nothing, {"device": "tpux"}, ["--device=tpux is no device; use auto, cpu, cuda"]),
]


@pytest.mark.parametrize(("name", "spoil", "settings", "parts"), TRAININGS, ids=[row[0] for row in TRAININGS])
def test_tokenizers(world, capsys, monkeypatch, name, spoil, settings, parts):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    values = {"dataset": "Tiny", "data_dir": world / "data"} | TOKENIZER | settings
    argv = [f"--{key}={value}" for key, value in values.items()]
    check(world, tokenizer.train.main, argv, spoil, parts, capsys)


def test_a_collision_group_larger_than_the_last_level(world, capsys):
    rows(lambda e: e.__setitem__(slice(0, 5), e[0]))(world)
    values = {"dataset": "Tiny", "data_dir": world / "data"} | TOKENIZER | {"codebook_size": "[8,8,8,4]"}
    argv = [f"--{key}={value}" for key, value in values.items()]
    assert "5 items have the same embedding" in refusal(tokenizer.train.main, argv, capsys)
    tokenizer.train.main([*argv, "--codebook_size=8"])
    capsys.readouterr()
    said = refusal(tokenizer.export.main, argv, capsys)
    assert "items share the codes" in said
    assert "the disambiguation level of 4 separates at most 3" in said
    assert not list((world / "data" / "Tiny" / "made").glob("*.sem_ids"))
    argv = flags(world / "data" / "Tiny", world / "runs", run_name="r", token_prefix="made/encoder_8,8,8,4")
    assert "its training or export was interrupted; run tokenizer/run.sh again" in refusal(finetune.main, argv, capsys)


@pytest.mark.parametrize("text", ["", " ", None, 7])
def test_an_item_without_text(world, capsys, text):
    spoil = edit("metadata.sentence.json", lambda texts: texts.update(item3=text))
    argv = [f"--data_dir={world / 'data'}", "--dataset=Tiny", "--sent_emb_model=tfidf", "--sent_emb_dim=4"]
    argv += ["--sent_emb_pca=2", "--ckpt_name=made"]
    check(world, embed.main, argv, spoil, ["1 of 20 items have no text, the first is 'item3'"], capsys)


def test_an_output_folder_that_cannot_be_written_to(world, capsys):
    (world / "runs").write_text("a file")
    argv = flags(world / "data" / "Tiny", world / "runs", run_name="r")
    said = f"{world / 'runs' / 'Tiny' / 'r'} cannot be written to: Not a directory; choose another folder"
    check(world, finetune.main, argv, nothing, [said], capsys)


def test_short_and_empty_sequences_are_no_error(world):
    edit(SEQUENCES, lambda s: s.update(user5=[], user6=["item1"], user7=["item1", "item2"]))(world)
    finetune.main(flags(world / "data" / "Tiny", world / "runs", run_name="r", epochs=1, sem_id_epochs=2))
    results = json.loads((world / "runs" / "Tiny" / "r" / "results.json").read_text())
    assert results["num_users"] == 26  # of 30; user1, user5, user6 and user30 have no items or one
