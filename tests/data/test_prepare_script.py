import json
import shutil
from pathlib import Path

import pytest
from raw_files import START, Review, write_items, write_reviews
from tiny_runs import run_script


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A mirror of the 2023 edition with the category Shop, and the same files as Video_Games."""
    reviews = [Review(f"U{user}", f"B{item}", START + 10 * item + user) for user in range(6) for item in range(6)]
    ratings, meta = tmp_path / "mirror/benchmark/5core/rating_only", tmp_path / "mirror/raw/meta_categories"
    for folder in (ratings, meta):
        folder.mkdir(parents=True)
    write_reviews(ratings, "2023 rating_only", reviews, [])
    write_items(meta, "2023", {f"B{item}": f"Thing {item}" for item in range(6)}, [])
    shutil.copyfile(ratings / "Shop.csv.gz", ratings / "Video_Games.csv.gz")
    shutil.copyfile(meta / "meta_Shop.jsonl.gz", meta / "meta_Video_Games.jsonl.gz")
    return tmp_path / "mirror"


def test_download_reuse_and_refusal(mirror: Path, tmp_path: Path):
    settings = {"DATA_DIR": "data", "BASE_URL": f"file://{mirror}", "DATASET": "Shop"}
    raw = tmp_path / "data" / "raw"
    raw.mkdir(parents=True)
    whole = (mirror / "benchmark/5core/rating_only/Shop.csv.gz").read_bytes()
    (raw / "Shop.csv.gz.part").write_bytes(whole[:60])  # an interrupted download
    first = run_script("data/prepare.sh", folder=tmp_path, **settings)
    assert first.returncode == 0, first.stderr
    assert (raw / "Shop.csv.gz").read_bytes() == whole
    assert sorted(file.name for file in raw.iterdir()) == ["Shop.csv.gz", "meta_Shop.jsonl.gz"]
    sequences = json.loads((tmp_path / "data/Shop/all_item_seqs.json").read_text())
    assert sequences == {f"U{user}": [f"B{item}" for item in range(6)] for user in range(6)}

    second = run_script("data/prepare.sh", folder=tmp_path, **settings | {"BASE_URL": "file:///nowhere"})
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("used as it is") == 2
    assert "reused, it was prepared before" in second.stdout

    absent = run_script("data/prepare.sh", folder=tmp_path, **settings | {"DATASET": "Else"})
    assert absent.returncode == 1
    assert "put Else.csv.gz and meta_Else.jsonl.gz of Amazon Reviews 2023" in absent.stderr

    short = run_script("data/prepare.sh", folder=tmp_path, **settings | {"DATASET": "Video_Games"})
    assert short.returncode == 2
    assert "has 36 rows, the official 5-core file has 814586" in short.stderr
    assert not (tmp_path / "data" / "Video_Games").exists()


def test_dry_run_prints_the_commands(tmp_path: Path):
    result = run_script("data/prepare.sh", "--k_core=10", folder=tmp_path, DATA_DIR="data", DRY_RUN="1")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["mkdir", "curl", "gzip", "mv"]
    assert "benchmark/5core/rating_only/Musical_Instruments.csv.gz" in lines[1]
    assert lines[-1].split()[-1] == "--k_core=10"
    other = run_script("data/prepare.sh", "--dataset=Video_Games", folder=tmp_path, DATA_DIR="data", DRY_RUN="1")
    assert "rating_only/Video_Games.csv.gz" in other.stdout
    assert "Musical_Instruments" not in other.stdout
    assert not (tmp_path / "data").exists()
