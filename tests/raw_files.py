"""Raw review files as Amazon's editions and shops publish them, with the dirt that real ones have."""

import csv
import gzip
import json
from pathlib import Path
from typing import NamedTuple

import duckdb

START = 1_500_000_000  # seconds


class Review(NamedTuple):
    """One interaction; time in seconds."""

    user: str
    item: str
    time: int
    rating: float = 5.0


def write_lines(file: Path, lines: list[str]) -> Path:
    """Write lines, compressed where the name says so."""
    data = ("\n".join(lines) + "\n").encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


def write_reviews(folder: Path, edition: str, reviews: list[Review], dirt: list[str]) -> Path:
    """Write reviews in an edition's format, and lines of dirt at the end."""
    if edition == "2023":
        rows = [
            {
                **{"rating": review.rating, "title": "Good", "text": 'He said: "yes"\n', "images": []},
                **{"asin": "B0", "parent_asin": review.item, "user_id": review.user},
                # the edition has milliseconds; a few files have seconds
                **{"timestamp": review.time * (1 if number % 7 == 0 else 1000), "verified_purchase": True},
            }
            for number, review in enumerate(reviews)
        ]
        return write_lines(folder / "Shop.jsonl.gz", [*map(json.dumps, rows), *dirt])
    if edition == "2023 rating_only":
        rows = [f"{review.user},{review.item},{review.rating},{review.time * 1000}" for review in reviews]
        return write_lines(folder / "Shop.csv.gz", ["user_id,parent_asin,rating,timestamp", *rows, *dirt])
    rows = [
        {
            **{"overall": review.rating, "reviewTime": "01 1, 2018", "reviewerID": review.user, "asin": review.item},
            **{"reviewText": "Works.", "unixReviewTime": review.time},
        }
        for review in reviews
    ]
    return write_lines(folder / "reviews_Shop_5.json.gz", [*map(json.dumps, rows), *dirt])


def write_items(folder: Path, edition: str, texts: dict[str, str], dirt: list[str]) -> Path:
    """Write item metadata with the texts as titles, in an edition's format, and lines of dirt at the end."""
    if edition == "2014":  # Python literals, not JSON
        rows = [
            repr({"asin": name, "title": text, "price": None, "categories": [["Tools", "Hand 'tools'"]]})
            for name, text in texts.items()
        ]
    elif edition == "2018":
        rows = [
            json.dumps({"asin": name, "title": text, "brand": "", "category": ["Tools", "Hand 'tools'"], "price": ""})
            for name, text in texts.items()
        ]
    else:
        rows = [
            json.dumps(
                {
                    "parent_asin": name,
                    "title": text,
                    "price": None,
                    "categories": ["Tools", "Hand 'tools'"],
                    "store": None,
                }
            )
            for name, text in texts.items()
        ]
    return write_lines(folder / f"meta_Shop.json{'l' if edition.startswith('2023') else ''}.gz", [*rows, *dirt])


def write_table(folder: Path, kind: str, rows: list[dict], name: str) -> Path:
    """Write rows as csv, tsv, parquet or jsonl."""
    file = folder / f"{name}.{kind}"
    if kind == "jsonl":
        return write_lines(file, [json.dumps(row) for row in rows])
    source = file if kind != "parquet" else file.with_suffix(".csv")
    with open(source, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, rows[0], delimiter="\t" if kind == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    if kind == "parquet":
        duckdb.sql(f"COPY (SELECT * FROM read_csv('{source}')) TO '{file}'")
        source.unlink()
    return file
