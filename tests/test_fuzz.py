"""Whatever a file holds, its reader either reads it or raises the project's own error."""

import json
import os
from collections.abc import Callable

import numpy as np
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.interactions import load_interactions
from data.token_table import read_sem_ids
from tokenizer.config import TokenizerConfig
from tokenizer.embed import load_embeddings
from training.config import PretrainConfig
from utils.config import parse_config
from utils.errors import InputError

NAMES = ["a", "b", "c"]
fuzzed = settings(
    max_examples=600 if os.environ.get("FAULTS") == "long" else 40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
scalars = (
    st.none() | st.booleans() | st.integers(-3, 9) | st.integers() | st.floats() | st.sampled_from(NAMES) | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*NAMES, "user2id", "item2id"]) | st.text(), inner, max_size=4)
    ),
    max_leaves=20,
)


def contents(value: st.SearchStrategy) -> st.SearchStrategy[bytes]:
    """Return files of the JSON of such values, whole or cut, or of any bytes."""
    whole = value.map(lambda v: json.dumps(v).encode())
    return whole | st.tuples(whole, st.integers(0, 99)).map(lambda pair: pair[0][: pair[1]]) | st.binary(max_size=99)


def reads(read: Callable[[], object]) -> object:
    """Return what is read, or None for the project's own error; anything else fails the test."""
    try:
        return read()
    except InputError:
        return None


@fuzzed
@given(contents(st.dictionaries(st.sampled_from(NAMES), st.lists(st.integers(-1, 4) | scalars, max_size=4)) | values))
def test_semantic_ids(tmp_path, content):
    (tmp_path / "a.sem_ids").write_bytes(content)
    codes = reads(lambda: read_sem_ids(tmp_path / "a.sem_ids", NAMES, [4, 4, 4]))
    if codes is not None:
        assert codes.shape == (3, 3)
        assert (codes >= [0, 0, 1]).all()
        assert (codes < 4).all()
        assert len(np.unique(codes, axis=0)) == 3


ids = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 4) | scalars)
mappings = st.fixed_dictionaries({"user2id": ids, "item2id": st.just({"a": 1, "b": 2}) | ids})
sequences = st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(["a", "b"])) | values)


@fuzzed
@given(contents(mappings | values), contents(sequences | values))
def test_interactions(tmp_path, mapping, sequence):
    (tmp_path / "id_mapping.json").write_bytes(mapping)
    (tmp_path / "all_item_seqs.json").write_bytes(sequence)
    found = reads(lambda: load_interactions(tmp_path))
    if found is not None:
        assert len(found.items) == found.offsets[-1]
        assert ((found.items >= 1) & (found.items <= found.num_items)).all()
        assert ((found.user_ids >= 1) & (found.user_ids <= len(json.loads(mapping)["user2id"]))).all()


@fuzzed
@given(
    st.binary(max_size=48)
    | st.lists(st.floats(width=32), min_size=6, max_size=6).map(lambda v: np.float32(v).tobytes())
)
def test_embeddings(tmp_path, content):
    config = TokenizerConfig("Tiny", str(tmp_path), sent_emb_model="e", sent_emb_dim=2, sent_emb_pca=1)
    config.folder.mkdir(exist_ok=True)
    config.embedding_file.write_bytes(content)
    embeddings = reads(lambda: load_embeddings(config, 3))
    if embeddings is not None:
        assert embeddings.shape == (3, 2)
        assert np.isfinite(embeddings).all()
        assert embeddings.tobytes() == content


flags = st.sampled_from(
    ["lr", "epochs", "epoch_per_stage", "topk", "metrics", "codebook_size", "sem_id_epochs", "dataset"]
)
good = st.sampled_from([1, 2, 0.1, [1, 2], ["ndcg"], "1:3", "x", None, True])
yaml_files = st.dictionaries(flags, good | values, max_size=4).map(lambda v: yaml.safe_dump(v).encode())


@fuzzed
@given(
    yaml_files | values.map(lambda v: yaml.safe_dump(v).encode()) | st.text().map(str.encode) | st.binary(max_size=60)
)
def test_settings(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    argv = [f"--config_file={tmp_path / 'config.yaml'}"]
    found = reads(lambda: parse_config(PretrainConfig, argv, "test", ""))
    if found is not None:
        assert found[0].problems() == []
