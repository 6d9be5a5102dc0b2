"""A study's YAML file as a table of cells, and the jobs that the cells need.

A study crosses `variants` with `settings` and seeds. Both override the sections of a budget (experiments/budgets.yaml):

    dataset, data_dir   what is run on
    seeds               of the recommender; a tokenizer takes the same seed unless its section has a rand_seed
    tokenizer           flags of tokenizer/run.sh
    recommender         flags of pretrain.py and finetune.py
    pretrain            flags of pretrain.py, or null to train from scratch
    finetune, scratch   flags of finetune.py, on a pre-trained model or from scratch
    num_tokenizers      how many of the RQ-VAE's epochs are pre-trained with, counted back from the last one
    last                the epoch that is counted back from, by default the RQ-VAE's last
    gap                 epochs between two of them
    candidates          how many of them are fine-tuned with, counted back, or middle, or middle:3 for three there; the
                        best one on validation is the cell's result
    independent         pre-train with as many tokenizers of different seeds instead, the last epoch of each; the own
                        one is then the middle
    neighbours          pre-train with as many neighbour identifiers of the middle epoch instead; their ends differ in
                        this share of the items
    ensemble            combine the candidates' recommendations instead of picking one
    method              a method of baseline.py instead of all this, on the users that the recommender is trained on
    flags               further flags of baseline.py

`budgets` names those under which the study asks what its title says; others are refused. `further_baselines` are
variants that gains are shown relative to as well, in tables of their own.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from evaluation.run import is_seeded
from utils.errors import InputError

SECTIONS = (
    *("dataset", "data_dir", "seeds", "tokenizer", "recommender", "pretrain", "finetune", "scratch"),
    *("num_tokenizers", "last", "gap", "candidates", "independent", "neighbours", "ensemble", "method", "flags"),
)

USERS = ("train_user_ratio", "val_users")  # flags that say which users are trained and validated on


@dataclass(frozen=True)
class Job:
    """One run of the commands, named by everything that decides its outcome, so that studies share it."""

    kind: str  # embed, tokenizer, pretrain, finetune, ensemble or baseline
    settings: str  # JSON of the flags, sorted by name, and of what else decides the outcome
    needs: tuple["Job", ...] = ()  # the jobs whose files it reads

    @classmethod
    def of(cls, kind: str, needs: tuple["Job", ...] = (), /, **settings: Any) -> "Job":
        return cls(kind, json.dumps(settings, sort_keys=True), needs)

    @cached_property
    def id(self) -> str:
        """<kind>_<hash>, the name of the run's folder and of its line in jobs.jsonl, wherever the data lies."""
        decisive = {name: value for name, value in self.flags.items() if name != "data_dir"}
        text = json.dumps([self.kind, decisive, *(job.id for job in self.needs)])
        return f"{self.kind}_{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    @cached_property
    def flags(self) -> dict[str, Any]:
        return json.loads(self.settings)

    @property
    def dataset(self) -> str:
        """The dataset's name; an ensemble has that of what it joins."""
        return next(self.with_needs()).flags["dataset"]

    def with_needs(self) -> Iterator["Job"]:
        """Yield the jobs it needs, deepest first, then itself."""
        for job in self.needs:
            yield from job.with_needs()
        yield self


@dataclass(frozen=True)
class Cell:
    """One entry of a study's table, for one seed."""

    variant: str
    setting: str  # "" in a study without settings
    seed: int  # of the recommender and, unless the study fixes another one, of the tokenizer
    candidates: tuple[Job, ...]  # of which the best one on validation counts; the first is fixed beforehand

    @property
    def row(self) -> str:
        return f"{self.variant}, {self.setting}" if self.setting else self.variant


@dataclass(frozen=True)
class Study:
    """A study under one budget."""

    name: str  # the file's, without its suffix
    title: str  # what is asked, in a sentence
    baseline: str  # variant that gains are relative to, at the same setting or, if it has none, at its only one
    cells: tuple[Cell, ...]  # every row and seed
    popularity_edges: tuple[int, ...] = ()  # by their target's training interactions, test users are also cut at these
    identifiers: bool = False  # whether the semantic IDs' collisions, codes in use and distances are shown
    further_baselines: tuple[str, ...] = ()

    def jobs(self) -> list[Job]:
        """Return every job once, each after those that it needs, and all of a seed before the next seed."""
        tops = [top for cell in sorted(self.cells, key=lambda cell: cell.seed) for top in cell.candidates]
        return list({job.id: job for top in tops for job in top.with_needs()}.values())


def load_study(file: Path, budget: str, seeds: list[int] | None = None) -> Study:
    """Read a study; `seeds` replace the budget's.

    budgets.yaml lies beside the file, and the study's own section of the budget's name overrides the one there.

    Raises:
        InputError: A file is absent or has other keys than those above, the study is not for this budget, or under it
            two rows are the same trainings.
    """
    study, budgets = _read(file), _read(file.with_name("budgets.yaml"))
    if budget not in budgets:
        raise InputError(f"{file.with_name('budgets.yaml')} has no budget {budget}; it has {', '.join(budgets)}")
    if budget not in study.get("budgets", budgets):
        raise InputError(f"{file} says nothing with --budget={budget}; it is for {', '.join(study['budgets'])}")
    keys = ("title", "baseline", "variants", "settings", "popularity_edges", "identifiers")
    keys += ("budgets", "further_baselines")
    if set(study) - {*keys, *budgets} or "variants" not in study:
        raise InputError(f"{file}: expected {', '.join(keys)} or budgets, got {sorted(study)}")
    base = override(budgets[budget], study.get(budget) or {}, file)
    cells = []
    settings = study.get("settings") or {"": {}}
    for (variant, changes), (setting, further) in product(study["variants"].items(), settings.items()):
        options = override(override(base, changes or {}, file), further or {}, file)
        if options.get("method") and setting:
            continue
        cells += [Cell(variant, setting, seed, candidates(options, seed)) for seed in seeds or options["seeds"]]
    first: dict[tuple, Cell] = {}
    for cell in cells:
        other = first.setdefault((cell.seed, *(job.id for job in cell.candidates)), cell)
        if other is not cell:
            raise InputError(f"{file}: with --budget={budget} {other.row} and {cell.row} are the same trainings")
    shown = tuple(study.get("popularity_edges", ())), study.get("identifiers", False)
    further = tuple(study.get("further_baselines", ()))
    return Study(file.stem, study.get("title", ""), study.get("baseline", ""), tuple(cells), *shown, further)


def override(options: dict, changes: dict, file: Path) -> dict:
    """Return `options` with `changes`; a section of flags takes single flags over, null takes it away for good."""
    unknown = [name for name in changes if name not in SECTIONS]
    if unknown:
        raise InputError(f"{file}: unknown {', '.join(unknown)}; a variant may change {', '.join(SECTIONS)}")
    merged = dict(options)
    for name, value in changes.items():
        if isinstance(value, dict) and name in options:
            value = {**options[name], **value} if options[name] is not None else None
        merged[name] = value
    return merged


def candidates(options: dict, seed: int) -> tuple[Job, ...]:
    """Return the jobs of a cell; the first is the one fixed beforehand."""
    data = {"dataset": options["dataset"], "data_dir": options["data_dir"]}
    if method := options.get("method"):
        users = {name: value for name, value in options["recommender"].items() if name in USERS}
        flags = ({} if method == "popular" else users) | options.get("flags", {})  # popular are all users' items
        drawn = {"rand_seed": seed} if is_seeded(method, flags.get("train_user_ratio", 1.0)) else {}
        return (Job.of("baseline", **data, method=method, **drawn, **flags),)

    of_tokenizer = options["tokenizer"].items()
    encoder = {name: value for name, value in of_tokenizer if name.startswith("sent_emb_") and name != "sent_emb_pca"}
    embedding = Job.of("embed", **data, **encoder)  # one for all seeds

    def tokenizer(tokenizer_seed: int) -> Job:
        return Job.of("tokenizer", (embedding,), **{**data, **options["tokenizer"], "rand_seed": tokenizer_seed})

    own_seed = options["tokenizer"].get("rand_seed", seed)
    last = options.get("last") or options["tokenizer"]["epochs"]
    own = tokenizer(own_seed)
    flags = {**data, **options["recommender"], "rand_seed": seed}
    if options.get("independent"):
        first, count = min(options["seeds"]), options["num_tokenizers"]
        others = [s for s in range(first, first + count) if s != own_seed][: count - 1]
        groups = [(own, last), *((tokenizer(s), last) for s in others)]
    else:
        groups = [(own, last - index * options["gap"]) for index in range(options["num_tokenizers"])]
    middle = 0 if options.get("independent") else len(groups) // 2
    if (drift := options.get("neighbours")) is not None:
        related = neighbours(own, groups[middle][1], len(groups), drift)
        groups = [(related, number) for number in range(len(groups), 0, -1)]
        middle = (len(groups) - 1) // 2  # the number that is the given epoch
    before: tuple[Job, ...] = ()
    stage = options["scratch"]
    if options["pretrain"] is not None:
        many = tuple({job.id: job for job, _ in groups}.values())
        epochs = sorted({epoch for _, epoch in groups})
        before = (Job.of("pretrain", many, **{**flags, **options["pretrain"]}, sem_id_epochs=epochs),)
        stage = options["finetune"]
    word, _, count = str(options["candidates"]).partition(":")
    if word == "middle":  # itself, then those next to it
        places = sorted(range(len(groups)), key=lambda place: abs(place - middle))[: int(count or 1)]
    else:
        places = range(options["candidates"])
    flags |= stage
    chosen = [groups[place] for place in places if place < len(groups)]
    jobs = tuple(Job.of("finetune", (job, *before), **flags, sem_id_epochs=[epoch]) for job, epoch in chosen)
    if not options.get("ensemble"):
        return jobs
    if len(jobs) == 1:
        raise InputError("an ensemble of one candidate joins nothing: give it more candidates, such as middle:3")
    return (Job.of("ensemble", jobs),)


def neighbours(tokenizer: Job, epoch: int, count: int, drift: float) -> Job:
    """Return the job of the tokenizers around an epoch of another one; they count from 1, the middle is that epoch."""
    kept = ("dataset", "data_dir", "rand_seed", "n_codebooks", "codebook_size")
    flags = {name: value for name, value in tokenizer.flags.items() if name in kept or name.startswith("sent_emb_")}
    flags |= {"kind": "neighbours", "drift": drift, "num_tokenizers": count, "epochs": count}
    return Job.of("tokenizer", (*tokenizer.needs, tokenizer), **flags, sem_id_epochs=[epoch])


def _read(file: Path) -> dict:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold a mapping")
    return content
