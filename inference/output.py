"""Recommendations in a file: JSON lines, CSV or Parquet, written in shards so that an interruption costs little."""

import json
from pathlib import Path

import duckdb
import numpy as np

from data.readers import literal
from inference.histories import Request
from inference.recommend import Recommendations
from utils.files import atomic_path

FORMATS = (".jsonl", ".csv", ".parquet")


def write_shard(file: Path, requests: list[Request], found: Recommendations, names: list[str]) -> None:
    """Write {"user", "items", "scores", "source"} per line; the scores of most popular items are null."""
    with atomic_path(file) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        for request, items, scores, popular in zip(
            requests, found.items, found.scores, found.by_popularity, strict=True
        ):
            row = {
                "user": request.user,
                "items": [names[item] for item in items],
                "scores": [None if np.isnan(score) else round(float(score), 6) for score in scores],
                "source": "most_popular" if popular else "model",
            }
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def combine_shards(shards: list[Path], output: Path) -> None:
    """Make the output of its shards: JSON lines as they are, or a row (user, rank from 1, item, score, source)."""
    with atomic_path(output) as temporary:
        if output.suffix == ".jsonl":
            with open(temporary, "wb") as handle:
                for shard in shards:
                    handle.write(shard.read_bytes())
        else:
            _write_rows(shards, temporary, {".csv": "csv, header", ".parquet": "parquet"}[output.suffix])


def _write_rows(shards: list[Path], target: Path, kind: str) -> None:
    """Write a row for each user and rank, in the order of the shards."""
    rows = """
        SELECT "user", unnest(range(1, len(items) + 1)) AS rank, unnest(items) AS item, unnest(scores) AS score, source
        FROM read_json(?, format = 'newline_delimited', columns = {
            user: 'VARCHAR', items: 'VARCHAR[]', scores: 'DOUBLE[]', source: 'VARCHAR'})"""
    with duckdb.connect() as connection:
        name = literal(target)
        connection.execute(f"COPY ({rows}) TO {name} (FORMAT {kind})", [list(map(str, shards))])
