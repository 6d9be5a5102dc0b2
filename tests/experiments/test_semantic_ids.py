import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from data.interactions import load_interactions
from data.token_table import read_sem_ids, write_sem_ids
from experiments import run, semantic_ids
from experiments.results import open_jobs, write_outcome
from experiments.run import RunConfig, Runner
from experiments.semantic_ids import keep_semantic_ids, kept_file, restore_semantic_ids
from experiments.study import Job
from tokenizer.config import TokenizerConfig
from tokenizer.folder import sem_ids_file
from utils.errors import InputError
from utils.files import write_json

SIZES = (8, 8, 8, 8)


@pytest.fixture
def jobs(dataset: Path) -> list[Job]:
    """Return a tokenizer of three epochs, whose semantic IDs are there, and two trainings, on 2 and 3 and on 1 to 3."""
    flags = {"dataset": "Tiny", "data_dir": str(dataset.parent)}
    tokenizer = Job.of("tokenizer", **flags, codebook_size=8, epochs=3, save_last=3)
    config = TokenizerConfig(**tokenizer.flags, ckpt_name=tokenizer.id)
    for epoch, file in zip((1, 2, 3), sorted((dataset / "rqvae").glob("*_[123].sem_ids")), strict=True):
        target = sem_ids_file(config, epoch)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(file, target)
    return [
        tokenizer,
        Job.of("finetune", (tokenizer,), **flags, sem_id_epochs=[2, 3]),
        Job.of("finetune", (tokenizer,), **flags, sem_id_epochs=[1, 2, 3]),
    ]


@pytest.fixture
def kept(jobs: list[Job], dataset: Path, tmp_path: Path) -> dict[int, bytes]:
    """Finish the first training, keep its semantic IDs, lose the tokenizer's folder, and return what the files held."""
    results, folder = tmp_path / "results", dataset / jobs[0].id
    write_outcome(jobs[0], results, {})
    keep_semantic_ids(jobs[1:2], results)
    files = {epoch: next(folder.glob(f"*_{epoch}.sem_ids")).read_bytes() for epoch in (1, 2, 3)}
    shutil.rmtree(folder)
    return files


def test_what_results_rest_on_comes_back_byte_for_byte(jobs, kept, dataset, tmp_path):
    results = tmp_path / "results"
    assert open_jobs(jobs[:2], str(tmp_path), str(results)) == jobs[:2]
    restore_semantic_ids(jobs[1:2], results)
    files = sorted((dataset / jobs[0].id).glob("*.sem_ids"))
    assert [file.read_bytes() for file in files] == [kept[2], kept[3]]
    assert open_jobs(jobs[:2], str(tmp_path), str(results)) == jobs[1:2]
    restore_semantic_ids(jobs[1:2], results)  # what is there already is left alone


def test_a_tokenizer_whose_middle_alone_is_used_is_not_trained_again(jobs, kept, tmp_path):
    tokenizer, results = jobs[0], tmp_path / "results"
    middle = Job.of("finetune", (tokenizer,), dataset="Tiny", data_dir=tokenizer.flags["data_dir"], sem_id_epochs=[2])
    restore_semantic_ids([middle], results)
    assert open_jobs([tokenizer, middle], str(tmp_path), str(results)) == [middle]


def test_an_epoch_that_was_not_kept_is_refused(jobs, kept, tmp_path):
    with pytest.raises(InputError, match=r"keeps the semantic IDs of the epochs \[2, 3\].* not of \[1\]"):
        restore_semantic_ids(jobs, tmp_path / "results")


def test_a_tokenizer_trained_again_is_refused(jobs, kept, dataset, tmp_path):
    folder = dataset / jobs[0].id
    write_json(folder / "training.json", {"finished": False})
    with pytest.raises(InputError, match="other semantic IDs than"):
        restore_semantic_ids(jobs[1:2], tmp_path / "results")
    (folder / "training.json").unlink()
    restore_semantic_ids(jobs[1:2], tmp_path / "results")
    file, names = next(folder.glob("*_3.sem_ids")), load_interactions(dataset).item_names[1:]
    write_sem_ids(file, names, read_sem_ids(file, names, SIZES)[::-1])
    with pytest.raises(InputError, match="other semantic IDs than"):
        restore_semantic_ids(jobs[1:2], tmp_path / "results")


def test_further_epochs_are_added_and_none_is_made_where_none_is_kept(jobs, dataset, tmp_path):
    results = tmp_path / "results"
    restore_semantic_ids(jobs, results)
    assert not results.exists()
    for training, epochs in zip(jobs[1:], (["2", "3"], ["1", "2", "3"]), strict=True):
        keep_semantic_ids([training], results)
        with np.load(kept_file(jobs[0], results)) as arrays:
            assert arrays.files == epochs
            assert {(arrays[epoch].shape, arrays[epoch].dtype.name) for epoch in epochs} == {((20, 4), "uint8")}


def test_a_job_without_an_outcome_may_be_kept_but_not_the_reverse(jobs, tmp_path, monkeypatch):
    def killed(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "collect", killed)
    runner = Runner(RunConfig(["study.yaml"], ckpt_dir=str(tmp_path), results_dir=str(tmp_path / "results")), jobs[:2])
    with pytest.raises(KeyboardInterrupt):
        runner._finish(jobs[1], {})
    assert sorted(semantic_ids.kept_codes(jobs[0], tmp_path / "results")) == [2, 3]


def test_two_jobs_that_finish_together_lose_no_epoch(jobs, tmp_path, monkeypatch):
    """While the first job's are read, the second one tries to keep its own, of which epoch 1 is its alone."""
    present = semantic_ids._present
    second = threading.Thread(target=keep_semantic_ids, args=(jobs[2:], tmp_path / "results"))

    def slow_present(*arguments) -> dict:
        if second.ident is None:
            second.start()
            second.join(timeout=0.5)
        return present(*arguments)

    monkeypatch.setattr(semantic_ids, "_present", slow_present)
    keep_semantic_ids(jobs[1:2], tmp_path / "results")
    second.join()
    assert sorted(semantic_ids.kept_codes(jobs[0], tmp_path / "results")) == [1, 2, 3]


def test_a_tokenizer_whose_semantic_ids_were_not_kept_is_not_trained_again_for_results(jobs, dataset, tmp_path):
    results = tmp_path / "results"
    write_outcome(jobs[1], results, {})
    restore_semantic_ids(jobs[2:], results)  # its semantic IDs are there
    shutil.rmtree(dataset / jobs[0].id)
    with pytest.raises(InputError, match="were not kept, and trained again it may be another one"):
        restore_semantic_ids(jobs[2:], results)
    restore_semantic_ids(jobs[2:], tmp_path / "others")
