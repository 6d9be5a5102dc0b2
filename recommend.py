"""Recommend items to users, or for any history: a table on the terminal, or a file for many users.

    python recommend.py --model=ckpt/Sample/mtgrec.winner.json --users=U00001,U00002
    python recommend.py --model=ckpt/Sample/mtgrec_best_104 --history=I0012,I0345          newest last
    python recommend.py --model=ckpt/Sample/mtgrec_best_104 --all_users --output=recs.parquet
    accelerate launch --multi_gpu --num_processes=4 recommend.py --model=DIR --all_users --output=recs.jsonl

Only real items are recommended, k different ones for everybody (fewer where no more are left), without those of the
history; a score is the mean log-probability per level of the item's semantic ID. Whoever has no history gets the most
popular items, without scores.
An interrupted --output goes on where it stopped when the same command is run again.
"""

import hashlib
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import utils  # noqa: F401  # isort: skip  (before torch)
import numpy as np
from accelerate import Accelerator
from tqdm import tqdm

from evaluation.run import resolve_winner
from inference.recommend import RecommendationModel, Recommendations, load
from inference.requests import FORMATS, Request, combine_shards, find_requests, unknown_items_notes, write_shard
from model.recommender import find_model_folder
from utils.claims import claim
from utils.config import parse_config
from utils.errors import InputError
from utils.files import sha256_of
from utils.runtime import join_processes, run_command
from utils.shards import Shards
from utils.text_table import shorten

USERS_PER_SHARD = 1024


@dataclass
class RecommendConfig:
    """Settings of recommending; exactly one of users, history, users_file and all_users says for whom."""

    model: str = ""
    """Run folder (its tokenizer that is best on validation), a checkpoint in one, a folder made by export.py, the
    <name>.winner.json of finetune.sh, or hf:user/name on a model hub."""
    users: str = ""
    """Users of the dataset, separated by commas."""
    history: str = ""
    """Items, newest last, separated by commas; [] for somebody without a history. Names with commas go into
    users_file."""
    users_file: str = ""
    """File with a user per line, or {"user": "name", "history": ["item", ...]} per line (then no dataset is needed)."""
    all_users: bool = False
    """Every user of the dataset; needs output."""
    data_dir: str | None = None
    """Folder that holds the dataset's folder; by default where the run had it."""
    new_items: str = ""
    """File that tokenizer/export.py --assign wrote: its items are recommended too."""
    k: int = 10
    """Items for each user."""
    exclude_seen: bool = True
    """Leave out the items of the history."""
    num_beams: int = 50
    """Beams of the search; at least k are used."""
    batch_size: int = 128
    """Users per batch and process."""
    output: str = ""
    """File to write: .jsonl (a line per user), .csv or .parquet (a row per user and rank). Empty: prints a table."""
    overwrite: bool = False
    """Replace an output file that is there."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:1."""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        found = [] if self.model else ["name a run or model folder with --model"]
        whom = [name for name in ("users", "history", "users_file", "all_users") if getattr(self, name)]
        if len(whom) != 1:
            given = " and ".join(whom) or "none"
            found.append(f"say for whom with one of --users, --history, --users_file, --all_users (given: {given})")
        for name in ("k", "num_beams", "batch_size"):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} must be at least 1")
        if self.output and Path(self.output).suffix not in FORMATS:
            found.append(f"output={self.output} must end in {', '.join(FORMATS)}")
        if self.all_users and not self.output:
            found.append("--all_users needs --output")
        return found


def notes_on_few_items(config: RecommendConfig, model: RecommendationModel, requests: list[Request]) -> list[str]:
    """Say how many users have fewer than k items left, if any; raise InputError where nobody has k."""
    left = [model.available(request.history, config.exclude_seen) for request in requests]
    few = sum(count < config.k for count in left)
    if few == len(requests):
        raise InputError(
            f"{requests[0].user or 'the history'} leaves {left[0]} of {model.catalogue.num_items} items to recommend, "
            f"k={config.k} are wanted; lower --k or pass --exclude_seen=false"
        )
    return [f"fewer than k={config.k} items are left for {few:,} of {len(requests):,} users, who get these"] * (few > 0)


def recommend(config: RecommendConfig, model: RecommendationModel, requests: list[Request]) -> Recommendations:
    """Recommend to some users."""
    user_ids = np.asarray([request.user_id for request in requests], dtype=np.int64)
    histories = [request.history for request in requests]
    return model.recommend_ids(histories, user_ids, config.k, config.num_beams, config.exclude_seen, config.batch_size)


def table(request: Request, found: Recommendations, row: int, model: RecommendationModel) -> str:
    """Return one user's history and recommendations as text as wide as the terminal."""
    columns = min(160, shutil.get_terminal_size((100, 20)).columns)
    catalogue = model.catalogue
    items = found.items[row][found.items[row] > 0]
    width = max([4, *(len(catalogue.names[item]) for item in items)])

    def text(item: int, indent: int) -> str:
        return shorten(catalogue.texts[item], max(20, columns - indent))

    title = f"User {request.user}" if request.user else "This history"
    if found.by_popularity[row]:
        lines = [f"{title}: no items, so the most popular ones are recommended"]
    else:
        latest = request.history[-3:]
        lines = [f"{title}: {len(request.history)} items, the last {len(latest)}, newest last"]
        lines += [f"  - {text(item, 4)}" for item in latest]
    lines.append(f"{'rank':>4}  {'item':{width}}  {'score':>8}  text")
    for rank, (item, score) in enumerate(zip(items, found.scores[row][: len(items)], strict=True), start=1):
        shown = "-" if np.isnan(score) else f"{score:.4f}"
        lines.append(f"{rank:>4}  {catalogue.names[item]:{width}}  {shown:>8}  {text(item, width + 18)}")
    return "\n".join(lines)


def write_output(
    config: RecommendConfig, model: RecommendationModel, requests: list[Request], processes: Accelerator
) -> None:
    """Recommend to all users in shards, shared by the processes, and put the output file together."""
    output = Path(config.output)
    claim(output, overwrite=config.overwrite)
    parts = [requests[start : start + USERS_PER_SHARD] for start in range(0, len(requests), USERS_PER_SHARD)]
    catalogue, wanted = model.catalogue, repr([(r.user, r.user_id, r.history.tolist()) for r in requests])
    made_from = {
        "model": sha256_of(find_model_folder(config.model) / "model.safetensors"),
        "items": hashlib.sha256(repr((catalogue.names, catalogue.codes().tolist())).encode()).hexdigest(),
        "requests": hashlib.sha256(wanted.encode()).hexdigest(),
        **{name: getattr(config, name) for name in ("k", "exclude_seen", "num_beams")},
    }
    shards = Shards(output, made_from, len(parts))
    with shards.shared(processes) as (note, missing, mine):
        if note:
            print(f"{output}: {note}")
        started = time.perf_counter()
        shown, total = processes.is_main_process and sys.stderr.isatty(), sum(len(parts[index]) for index in mine)
        with tqdm(total=total, unit="user", disable=not shown) as bar:
            for index in mine:
                write_shard(shards.path(index), parts[index], recommend(config, model, parts[index]), catalogue.names)
                bar.update(len(parts[index]))
        processes.wait_for_everyone()
        if processes.is_main_process:
            seconds, done = time.perf_counter() - started, sum(len(parts[index]) for index in missing)
            combine_shards(shards.paths(), output)
            shards.remove()
            popular = sum(len(request.history) == 0 for request in requests)
            print(
                f"{output}: {config.k} items for {len(requests):,} users, {done:,} of them now in {seconds:.1f} s "
                f"({done / seconds:,.0f} users/s)"
                + (f"; {popular:,} users have no known history and got the most popular items" if popular else "")
            )


def main(argv: list[str] | None = None) -> None:
    """Recommend; `argv` are the flags, by default the command line's."""
    config, _ = parse_config(RecommendConfig, argv, "recommend.py", __doc__)
    config.model = str(resolve_winner(config.model))
    processes, device = join_processes(config.device)
    model = load(config.model, device, config.data_dir, config.new_items)
    requests = find_requests(model, config.users, config.history, config.users_file, config.all_users)
    few = notes_on_few_items(config, model, requests)
    if processes.is_main_process:
        for note in [*unknown_items_notes(requests, model.catalogue), *few]:
            print(note, file=sys.stderr)
    if config.output:
        write_output(config, model, requests, processes)
    elif processes.is_main_process:
        found = recommend(config, model, requests)
        print("\n\n".join(table(request, found, row, model) for row, request in enumerate(requests)))
    processes.end_training()


if __name__ == "__main__":
    run_command(main)
