import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_processes
from sentence_transformers import SentenceTransformer
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tokenizer import embed as embedding
from tokenizer.config import TokenizerConfig
from tokenizer.embed import check_encoder, embed, encode_texts, load_embeddings
from utils.config import parse_config
from utils.errors import InputError

MakeConfig = Callable[..., TokenizerConfig]


@pytest.fixture
def texts(dataset: Path) -> list[str]:
    return list(json.loads((dataset / "metadata.sentence.json").read_text()).values())


def save_network(folder: Path, seed: int = 0, **changes: int) -> None:
    """Draw the encoder's weights and write them to its folder."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    words = len(PreTrainedTokenizerFast.from_pretrained(folder))
    BertModel(BertConfig(vocab_size=words, **sizes | changes)).save_pretrained(folder)


@pytest.fixture
def tiny_model(tmp_path: Path, texts: list[str]) -> Path:
    """A sentence-transformers folder as it is published: 1-layer BERT of 16 dimensions with mean pooling."""
    folder = tmp_path / "tiny-encoder"
    (folder / "1_Pooling").mkdir(parents=True)
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(texts, vocab_size=150, show_progress=False)
    pieces.save(str(folder / "pieces.json"))
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "pieces.json"), **names).save_pretrained(folder)
    save_network(folder)
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    return folder


def mean_pooled(folder: Path, text: str | list[int]) -> np.ndarray:
    """Embed one text, or its token ids, without sentence-transformers."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = torch.tensor([tokenizer(text)["input_ids"] if isinstance(text, str) else text])
    with torch.no_grad():
        return BertModel.from_pretrained(folder).eval()(ids).last_hidden_state[0].mean(0).numpy()


def test_sentence_transformers_folder(make_config: MakeConfig, tiny_model: Path, texts: list[str]):
    config = make_config(sent_emb_model=str(tiny_model), sent_emb_dim=16, sent_emb_batch_size=7)
    file = embed(config)
    assert file.name == "tiny-encoder.sent_emb"
    assert file.stat().st_size == len(texts) * 16 * 4
    embeddings = load_embeddings(config, len(texts))
    for row in (0, 17, 59):
        np.testing.assert_allclose(embeddings[row], mean_pooled(tiny_model, texts[row]), rtol=1e-4, atol=1e-5)
    settings = json.loads((file.parent / "tiny-encoder.sent_emb.json").read_text())
    assert (settings["dim"], settings["items"], settings["model"]) == (16, 60, str(tiny_model))
    with pytest.raises(InputError, match="gives 16 dimensions; pass --sent_emb_dim=16"):
        embed(make_config(sent_emb_model=str(tiny_model), sent_emb_dim=12, overwrite=True))


def encoder_config(make_config: MakeConfig, tiny_model: Path, **changes: object) -> TokenizerConfig:
    return make_config(sent_emb_model=str(tiny_model), sent_emb_dim=16, sent_emb_batch_size=7, **changes)


def test_prompt_and_truncation(make_config: MakeConfig, tiny_model: Path, texts: list[str]):
    config = encoder_config(make_config, tiny_model, sent_emb_prompt="acme ", sent_emb_max_length=5)
    embed(config)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    ids = tokenizer("acme " + texts[8])["input_ids"]
    assert len(ids) > 5
    expected = mean_pooled(tiny_model, ids[:5])
    np.testing.assert_allclose(load_embeddings(config, len(texts))[8], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"max_length was 5, now None; prompt was 'acme ', now None"):
        embed(encoder_config(make_config, tiny_model))


def side_file(config: TokenizerConfig) -> Path:
    return config.embedding_file.with_name(f"{config.embedding_file.name}.json")


def test_an_encoder_folder_is_known_by_its_content(
    make_config: MakeConfig, tiny_model: Path, texts: list[str], capsys: pytest.CaptureFixture
):
    config = encoder_config(make_config, tiny_model)
    before = embed(config).read_bytes()
    (tiny_model / "README.md").write_text("a page about it")
    (tiny_model.parent / "new").mkdir()
    moved = tiny_model.rename(tiny_model.parent / "new" / tiny_model.name)
    embed(encoder_config(make_config, moved))
    assert "reused" in capsys.readouterr().out
    moved.rename(tiny_model)

    save_network(tiny_model, seed=1)
    with pytest.raises(InputError, match=r"encoder_sha256 was '\w{64}', now '\w{64}'; --overwrite"):
        embed(config)
    with pytest.raises(InputError, match="encoder_sha256"):
        check_encoder(config)
    assert config.embedding_file.read_bytes() == before
    settings = json.loads(side_file(config).read_text())
    del settings["encoder_sha256"]  # as older files
    side_file(config).write_text(json.dumps(settings))
    embed(config)
    assert config.embedding_file.read_bytes() == before
    embed(replace(config, overwrite=True, sent_emb_dtype="bfloat16"))
    embed(replace(config, overwrite=True))
    expected = mean_pooled(tiny_model, texts[8])
    np.testing.assert_allclose(load_embeddings(config, len(texts))[8], expected, rtol=1e-4, atol=1e-5)


def test_a_hubs_encoder_is_known_by_its_commit(
    make_config: MakeConfig, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "hub"))
    cached, first, second = tmp_path / "hub/models--some--tiny", "1" * 40, "2" * 40
    for commit in (first, second):
        shutil.copytree(tiny_model, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(first)
    config = make_config(sent_emb_model="some/tiny", sent_emb_dim=16)
    embed(config)
    settings = json.loads(side_file(config).read_text())
    assert settings.keys() == {"model", "dim", "items", "texts_sha256", "commit"}
    assert settings["commit"] == first
    (cached / "refs/main").write_text(second)
    with pytest.raises(InputError, match=f"commit was '{first}', now '{second}'"):
        embed(config)
    shutil.rmtree(cached)
    embed(config)


def test_a_default_prompt_is_recorded_and_can_be_switched_off(
    make_config: MakeConfig, tiny_model: Path, texts: list[str]
):
    config, off = (encoder_config(make_config, tiny_model, sent_emb_prompt=prompt) for prompt in (None, ""))
    plain = embed(config).read_bytes()
    without = side_file(config).read_text()
    assert json.loads(without).keys() == {"model", "dim", "items", "texts_sha256", "encoder_sha256"}
    embed(off)  # there is nothing to switch off

    prompts = {"prompts": {"item": "acme ", "query": "drill "}, "default_prompt_name": "item"}
    (tiny_model / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    embed(replace(config, overwrite=True))
    settings = json.loads(side_file(config).read_text())
    assert settings["default_prompt"] == "acme "
    expected = mean_pooled(tiny_model, "acme " + texts[8])
    np.testing.assert_allclose(load_embeddings(config, len(texts))[8], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encode_texts(config, [texts[8]])[0], expected, rtol=1e-4, atol=1e-5)
    for refuse in (embed, check_encoder):
        with pytest.raises(InputError, match="prompt"):
            refuse(off)
    for name in ("default_prompt", "encoder_sha256"):  # as older files
        del settings[name]
    side_file(config).write_text(json.dumps(settings))
    embed(config)
    with pytest.raises(InputError, match="prompt was None, now ''"):
        embed(off)

    flags = [f"--{name}={getattr(config, name)}" for name in ("dataset", "data_dir", "sent_emb_model", "device")]
    flags += ["--sent_emb_dim=16", "--sent_emb_pca=6", "--sent_emb_batch_size=7"]
    embedding.main([*flags, "--sent_emb_prompt=", "--overwrite"])
    assert config.embedding_file.read_bytes() == plain
    assert json.loads(side_file(config).read_text())["prompt"] == ""
    with pytest.raises(InputError, match="prompt was '', now None"):
        embed(config)


@pytest.mark.parametrize("content", ["sent_emb_prompt: ''", "sent_emb_prompt: null", "dataset: Tiny"])
def test_a_settings_file_means_what_is_written_in_it(content: str, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(content)
    config, _ = parse_config(TokenizerConfig, ["--dataset=Tiny", f"--config_file={tmp_path}/config.yaml"], "", "")
    assert config.sent_emb_prompt == ("" if "''" in content else None)


def test_fewer_tokens_than_the_encoder_adds(make_config: MakeConfig, tiny_model: Path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    special = tokenizer.num_special_tokens_to_add()
    for length in range(1, special + 1):
        with pytest.raises(
            InputError, match=rf"max_length={length}: .* reads {special} tokens of its own .* {special + 1}"
        ):
            encode_texts(encoder_config(make_config, tiny_model, sent_emb_max_length=length), ["acme drill"])
    encode_texts(encoder_config(make_config, tiny_model, sent_emb_max_length=special + 1), ["acme drill"])


def test_more_tokens_than_the_encoder_has_positions(make_config: MakeConfig, tiny_model: Path):
    save_network(tiny_model, max_position_embeddings=32)
    long_text = "acme drill " * 40
    for use in (embed, lambda config: encode_texts(config, [long_text])):
        with pytest.raises(InputError, match=r"--sent_emb_max_length=64: .* reads at most 32 tokens of a text"):
            use(encoder_config(make_config, tiny_model, sent_emb_max_length=64))
    ids = PreTrainedTokenizerFast.from_pretrained(tiny_model)(long_text)["input_ids"]
    expected = mean_pooled(tiny_model, ids[:32])
    (tiny_model / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    for length in (32, None):
        found = encode_texts(encoder_config(make_config, tiny_model, sent_emb_max_length=length), [long_text])
        np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


def test_an_encoders_own_code_runs_only_if_asked(
    make_config: MakeConfig, tiny_model: Path, tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    (tiny_model / "doubling.py").write_text(
        "from sentence_transformers.models import Pooling\n\n\nclass Doubling(Pooling):\n"
        "    def forward(self, features, **others):\n        features = super().forward(features)\n"
        "        features['sentence_embedding'] = 2 * features['sentence_embedding']\n        return features\n"
    )
    modules = json.loads((tiny_model / "modules.json").read_text())
    modules[1]["type"] = "doubling.Doubling"
    (tiny_model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=r"needs code that comes with it; .*--sent_emb_trust_remote_code"):
        embed(encoder_config(make_config, tiny_model))
    config = encoder_config(make_config, tiny_model, sent_emb_trust_remote_code=True)
    embed(config)
    assert json.loads(side_file(config).read_text())["trust_remote_code"] is True
    expected = 2 * mean_pooled(tiny_model, texts[8])
    np.testing.assert_allclose(load_embeddings(config, len(texts))[8], expected, rtol=1e-4, atol=1e-5)


def test_half_precision_is_near(make_config: MakeConfig, tiny_model: Path, texts: list[str]):
    config = encoder_config(make_config, tiny_model)
    embed(config)
    exact = load_embeddings(config, len(texts))
    config = encoder_config(make_config, tiny_model, sent_emb_dtype="bfloat16", overwrite=True)
    embed(config)
    rounded = load_embeddings(config, len(texts))
    assert 0 < np.abs(rounded - exact).max() < 0.05


def test_interrupted_it_goes_on_and_the_same_text_is_embedded_once(
    make_config: MakeConfig,
    tiny_model: Path,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    metadata = dataset / "metadata.sentence.json"
    items = json.loads(metadata.read_text())
    items |= dict.fromkeys(list(items)[:21], "the same text")
    metadata.write_text(json.dumps(items))
    monkeypatch.setattr(embedding, "TEXTS_PER_SHARD", 15)
    config = encoder_config(make_config, tiny_model)
    whole = embed(config).read_bytes()
    assert "40 different texts of 60 items" in capsys.readouterr().out
    assert len(np.unique(load_embeddings(config, 60)[:21], axis=0)) == 1

    seen, encode = [], SentenceTransformer.encode

    def stop_at_the_second_shard(self, texts: list[str], **settings: object) -> np.ndarray:
        seen.append(texts)
        if len(seen) == 3:  # the first call asks for the dimensions
            raise KeyboardInterrupt
        return encode(self, texts, **settings)

    monkeypatch.setattr(SentenceTransformer, "encode", stop_at_the_second_shard)
    config.embedding_file.unlink()
    with pytest.raises(KeyboardInterrupt):
        embed(config)
    assert not config.embedding_file.exists()
    assert embed(config).read_bytes() == whole
    assert "going on: 1 of 3 shards were finished before" in capsys.readouterr().out
    assert [len(texts) for texts in seen if isinstance(texts, list)] == [15, 15, 15, 10]
    lengths = [len(text) for texts in (seen[1], *seen[4:]) for text in texts]
    assert lengths == sorted(lengths, reverse=True)
    assert not list(dataset.glob(".*.shards"))


@pytest.mark.slow
def test_two_processes_write_the_same_file(
    make_config: MakeConfig, tiny_model: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = encoder_config(make_config, tiny_model)
    one = embed(config).read_bytes()
    config.embedding_file.unlink()
    monkeypatch.setattr(embedding, "TEXTS_PER_SHARD", 15)
    flags = [f"--dataset={dataset.name}", f"--data_dir={dataset.parent}", f"--sent_emb_model={tiny_model}"]
    flags += ["--sent_emb_dim=16", "--sent_emb_pca=6", "--sent_emb_batch_size=7"]
    assert run_processes(embedding.main, flags, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().count("written (60 items, 16 dimensions)") == 1
    two = config.embedding_file.read_bytes()
    np.testing.assert_allclose(np.frombuffer(two, "<f4"), np.frombuffer(one, "<f4"), rtol=1e-5, atol=1e-6)


def test_failed_download_names_the_two_ways_out(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = make_config(sent_emb_model="no-such-organisation/no-such-encoder")
    with pytest.raises(InputError, match=r"--sent_emb_model=/path/to/no-such-encoder.*--sent_emb_model=tfidf"):
        embed(config)
    assert not config.embedding_file.exists()


def test_a_folder_that_is_no_model(make_config: MakeConfig, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no sentence-transformers model"):
        embed(make_config(sent_emb_model=str(tmp_path / "empty")))


def test_a_published_file_is_reused_if_its_size_fits(make_config: MakeConfig, capsys: pytest.CaptureFixture):
    config = make_config()
    before = config.embedding_file.read_bytes()
    embed(config)
    assert "reused (60 items, 12 dimensions)" in capsys.readouterr().out
    assert config.embedding_file.read_bytes() == before
    with pytest.raises(
        InputError, match="2880 bytes, expected 60 items x 8 x 4 = 1920; it would fit --sent_emb_dim=12"
    ):
        embed(make_config(sent_emb_dim=8))


def test_settings_beside_the_file_decide_about_reuse(
    make_config: MakeConfig, dataset: Path, capsys: pytest.CaptureFixture
):
    config = make_config(sent_emb_model="tfidf", sent_emb_dim=10)
    first = embed(config).read_bytes()
    embed(config)
    assert "reused" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"seed was 2024, now 7.*--overwrite"):
        embed(make_config(sent_emb_model="tfidf", sent_emb_dim=10, rand_seed=7))
    metadata = dataset / "metadata.sentence.json"
    metadata.write_text(metadata.read_text().replace("hammer", "mallet"))
    with pytest.raises(InputError, match="texts_sha256"):
        embed(config)
    assert config.embedding_file.read_bytes() == first
    embed(make_config(sent_emb_model="tfidf", sent_emb_dim=10, overwrite=True))
    assert "made anew, since texts_sha256" in capsys.readouterr().out


def test_embeddings_of_other_texts_are_not_taken_where_new_ones_failed(
    make_config: MakeConfig, dataset: Path, monkeypatch: pytest.MonkeyPatch
):
    config = make_config(sent_emb_model="tfidf", sent_emb_dim=10, overwrite=True)
    first = embed(config).read_bytes()
    metadata = dataset / "metadata.sentence.json"
    metadata.write_text(metadata.read_text().replace("hammer", "mallet"))
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "atomic_path", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
        with pytest.raises(OSError, match="the disk is full"):
            embed(config)
    assert config.embedding_file.read_bytes() == first
    with pytest.raises(InputError, match="an interrupted run left it there; make it anew"):
        load_embeddings(config, 60)
    with pytest.raises(InputError, match=r"does not fit: an interrupted run left it there; --overwrite replaces it"):
        embed(make_config(sent_emb_model="tfidf", sent_emb_dim=10))
    assert embed(config).read_bytes() != first
    load_embeddings(config, 60)


def test_unusable_files_are_refused(make_config: MakeConfig):
    config = make_config()
    with pytest.raises(InputError, match="expected 61 items"):
        load_embeddings(config, 61)
    embeddings = load_embeddings(config, 60)
    embeddings[41, 3] = np.nan
    embeddings.tofile(config.embedding_file)
    with pytest.raises(InputError, match="1 items have NaN or infinity in their embedding, first item id 42"):
        load_embeddings(config, 60)
    config.embedding_file.unlink()
    with pytest.raises(InputError, match="does not exist"):
        load_embeddings(config, 60)
