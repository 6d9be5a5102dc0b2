import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import assert_same_weights
from transformers import T5ForConditionalGeneration

import export
from data.token_table import read_sem_ids
from inference.model_folder import export_model, load_trained_model
from model.recommender import load_recommender
from utils.errors import InputError

PREFIX = "rqvae/toy_8,8,8,8"


def test_a_run_is_read_with_its_tokenizer_that_is_best_on_validation(joint_run: Path, dataset: Path):
    model = load_trained_model(joint_run)
    group = model.catalogue.table.groups[0]
    assert (group.prefix, group.epoch) == (PREFIX, 2)
    names = model.catalogue.names
    assert names[:3] == ["[PAD]", "item1", "item2"]
    assert model.catalogue.texts[20] == "text of item20"
    np.testing.assert_array_equal(
        model.catalogue.codes(), read_sem_ids(dataset / f"{PREFIX}_2.sem_ids", names[1:], (8,) * 4)
    )
    sequences = json.loads((dataset / "all_item_seqs.json").read_text()).values()
    counted = [item for sequence in sequences for item in sequence[:-2]]
    assert model.catalogue.popularity[1:].tolist() == [counted.count(name) for name in names[1:]]
    assert model.metrics == {"valid": {"ndcg@10": 0.2}, "test": {"ndcg@10": 0.3}}


def test_an_exported_folder_needs_nothing_else(joint_run: Path, dataset: Path, tmp_path: Path):
    metadata = dataset / "metadata.sentence.json"
    metadata.write_text(metadata.read_text().replace("text of item3", "text\\u2028of item3"))
    expected = load_trained_model(joint_run)
    assert expected.catalogue.texts[3] == "text\u2028of item3"
    export_model(joint_run, tmp_path / "out")
    moved = shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    shutil.rmtree(dataset)
    model = load_trained_model(moved)
    assert model.catalogue.names == expected.catalogue.names
    assert model.catalogue.texts == expected.catalogue.texts
    assert torch.equal(model.catalogue.table.tokens, expected.catalogue.table.tokens)
    assert model.catalogue.popularity.tolist() == expected.catalogue.popularity.tolist()
    assert (model.settings, model.metrics) == (expected.settings, expected.metrics)
    assert_same_weights(moved, joint_run / "model")
    plain = T5ForConditionalGeneration.from_pretrained(moved).state_dict()
    weights = model.recommender.t5.state_dict()
    assert all(torch.equal(plain[name], weights[name]) for name in plain)
    about = json.loads((moved / "mtgrec.json").read_text())
    assert about["vocabulary"] == {
        **{"sizes": [8, 8, 8, 8], "n_user_tokens": 1, "level_offsets": [1, 9, 17, 25]},
        **{"base_user_token": 33, "eos_token": 34},
    }


def test_export_replaces_exported_models_only(joint_run: Path, tmp_path: Path):
    flags = [f"--run={joint_run}", "--overwrite"]
    source = tmp_path / "model"
    source.mkdir()
    (source / "t5.py").write_text("code")
    with pytest.raises(InputError, match="is there already and is no exported model; name another --output"):
        export.main([*flags, f"--output={source}"])
    assert (source / "t5.py").read_text() == "code"
    export.main([*flags, f"--output={tmp_path / 'out'}"])
    export.main([*flags, f"--output={tmp_path / 'out'}"])
    with pytest.raises(InputError, match="out is there already; --overwrite replaces it"):
        export.main([flags[0], f"--output={tmp_path / 'out'}"])


def test_a_run_can_be_completed_in_place(joint_run: Path, dataset: Path):
    export_model(joint_run, joint_run / "model")
    shutil.rmtree(dataset)
    assert load_trained_model(joint_run).catalogue.table.groups[0].epoch == 2


def test_semantic_ids_that_changed_since_training_are_refused(joint_run: Path, dataset: Path):
    table = load_trained_model(joint_run).catalogue.table
    recommender = load_recommender(joint_run / "model")
    recommender.semantic_ids_sha256 = table.sha256
    recommender.save_pretrained(joint_run / "model")
    load_trained_model(joint_run)
    file = dataset / f"{PREFIX}_2.sem_ids"
    codes = json.loads(file.read_text())
    codes["item1"], codes["item2"] = codes["item2"], codes["item1"]
    file.write_text(json.dumps(codes))
    with pytest.raises(InputError, match=rf"{joint_run} was trained with other semantic IDs than {file}: its tokens"):
        load_trained_model(joint_run)


def test_a_changed_file_is_refused(joint_run: Path, tmp_path: Path):
    export_model(joint_run, tmp_path / "out")
    items = tmp_path / "out" / "items.jsonl"
    items.write_text(items.read_text().replace("text of item3", "text of item4"))
    with pytest.raises(InputError, match=r"items\.jsonl is not what was written: its checksum differs"):
        load_trained_model(tmp_path / "out")


def test_a_checkpoint_takes_its_runs_settings_and_a_stray_model_is_refused(joint_run: Path, tmp_path: Path):
    shutil.copytree(joint_run / "model", joint_run / "checkpoints" / "epoch_5")
    of_checkpoint, of_run = load_trained_model(joint_run / "checkpoints" / "epoch_5"), load_trained_model(joint_run)
    assert of_checkpoint.catalogue.table.groups[0].epoch == 2
    assert (of_checkpoint.metrics, list(of_run.metrics)) == ({}, ["valid", "test"])  # the results are the best epoch's
    stray = tmp_path / "a" / "b" / "c"
    shutil.copytree(joint_run / "model", stray)
    with pytest.raises(InputError, match=r"lies in no run folder; python export\.py makes a complete folder"):
        load_trained_model(stray)
    (joint_run / "results.json").unlink()
    with pytest.raises(InputError, match=r"several tokenizers and no results\.json to choose by"):
        load_trained_model(joint_run)
