"""Reading runs: a run's folder, what it holds, and where it came from."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from data.interactions import Interactions, dataset_folder, load_interactions
from data.token_table import group_labels
from evaluation.results import Results, read_results
from utils.errors import InputError
from utils.files import read_json
from utils.hub import local_folder

RESULTS_FILE = "results.json"
SETTINGS_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
ENVIRONMENT_FILE = "environment.json"
WINNER_SUFFIX = ".winner.json"
# What baselines are called where people read them, by their setting `method`.
BASELINES = {"popular": "Most popular items", "itemknn": "Item neighbours", "sasrec": "SASRec"}


def is_seeded(method: str, train_user_ratio: float = 1.0) -> bool:
    """Whether a seed changes what a baseline comes to: by its weights, or by the users that it is trained on."""
    return method == "sasrec" or train_user_ratio < 1


def results_folder_of(run: Path, results_dir: str | None) -> Path:
    """Return where a run <ckpt_dir>/<dataset>/<run_name> puts its result files per user."""
    return Path(results_dir) / run.parent.name / run.name if results_dir else run


@dataclass(frozen=True)
class Run:
    """A run, and of its tokenizers the chosen one: the best on validation. Its files are read when they are wanted."""

    folder: Path  # <ckpt_dir>/<dataset>/<run_name>

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What it was made with: config.yaml; InputError where that is absent or broken."""
        try:
            settings = yaml.safe_load((self.folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{self.folder} has no readable {SETTINGS_FILE}: {error}") from None
        if not isinstance(settings, dict):
            raise InputError(f"{self.folder} has no settings in its {SETTINGS_FILE}")
        return settings

    @cached_property
    def results(self) -> dict[str, Any]:
        """What it came to: results.json, which a finished run has."""
        return read_json(self.folder / RESULTS_FILE)

    @cached_property
    def events(self) -> dict[str, list[dict[str, Any]]]:
        """The lines of metrics.jsonl by their event; none where there is no such file."""
        file, found = self.folder / METRICS_FILE, {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            values = json.loads(line)
            found.setdefault(values["event"], []).append(values)
        return found

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Command, versions, hardware, and hashes of what is read, `sources`; empty where they were not recorded."""
        file = self.folder / ENVIRONMENT_FILE
        return read_json(file) if file.is_file() else {}

    def changed_sources(self, now: dict[str, str]) -> list[str]:
        """Return the names of what it read whose hash was another than `now`; none where hashes were not recorded."""
        return [name for name, before in self.environment.get("sources", {}).items() if before != now.get(name)]

    def load_interactions(self, data_dir: str | None = None) -> Interactions:
        """Read its dataset, in `data_dir` if given; InputError where the run was made with other interactions."""
        folder = dataset_folder(data_dir or self.settings["data_dir"], self.settings["dataset"])
        interactions = load_interactions(folder)
        if "interactions" in self.changed_sources({"interactions": interactions.sha256}):
            raise InputError(
                f"{self.folder} was made with other interactions than {folder} has now, and their numbers cannot be "
                "mixed; bring the old ones back, or run it again"
            )
        return interactions

    @property
    def is_finished(self) -> bool:
        return all((self.folder / name).is_file() for name in (RESULTS_FILE, SETTINGS_FILE))

    @property
    def is_pretraining(self) -> bool:
        return "epoch_per_stage" in self.settings

    @property
    def method(self) -> str | None:
        """What a baseline is called, which has no semantic IDs; None of all other runs."""
        return BASELINES.get(self.settings.get("method"))

    @property
    def drawn_users(self) -> tuple[float, str, float, int | None]:
        """What decides whom it is trained, validated and tested on: train_user_ratio, val_users, test_ratio, the seed.

        The seed only where one is a share. Runs may be older than these settings; without them all users are meant.
        """
        trained, validated, tested = map(self.settings.get, ("train_user_ratio", "val_users", "test_ratio"))
        trained, validated, tested = trained or 1.0, validated or "all", tested or 1.0
        return trained, validated, tested, self.settings.get("rand_seed") if min(trained, tested) < 1 else None

    def has_data_of(self, other: "Run") -> bool:
        """Whether both were made with the same interactions, as far as they say: runs of earlier versions do not."""
        said = {run.environment.get("sources", {}).get("interactions") for run in (self, other)}
        return len(said - {None}) < 2

    @property
    def dataset_folder(self) -> Path:
        return Path(self.settings["data_dir"]) / self.settings["dataset"]

    @property
    def model(self) -> Path:
        """The folder of the best epoch's weights."""
        return self.folder / "model"

    @property
    def trained_identifiers(self) -> list[str]:
        """The hashes of the semantic IDs that the best weights were trained with; none where not recorded."""
        file = self.model / "config.json"
        return read_json(file).get("semantic_ids_sha256", []) if file.is_file() else []

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The model folders that were kept, by their 1-based epoch, in rising order."""
        return dict(sorted((int(p.name.split("_")[1]), p) for p in (self.folder / "checkpoints").glob("epoch_*")))

    @property
    def labels(self) -> list[str]:
        """A short name of each tokenizer."""
        return group_labels([(row["prefix"], row["epoch"]) for row in self.results["per_tokenizer"]])

    @property
    def chosen(self) -> int:
        """The 0-based index of the tokenizer with the best validation score."""
        rows, metric = self.results["per_tokenizer"], self.settings["val_metric"]
        return max(range(len(rows)), key=lambda index: rows[index]["valid"][metric])

    @property
    def tokenizer(self) -> dict[str, Any]:
        """The chosen tokenizer: prefix, epoch and, of a finished run, the metrics valid and test.

        Raises InputError where an unfinished run has several, which cannot be told apart.
        """
        if self.is_finished:
            return self.results["per_tokenizer"][self.chosen]
        prefix, epochs = self.settings["token_prefix"], self.settings["sem_id_epochs"] or [None]
        if isinstance(prefix, list) or len(epochs) > 1:
            raise InputError(
                f"{self.folder} has several tokenizers and no {RESULTS_FILE} to choose by; finish the run first"
            )
        return {"prefix": prefix, "epoch": epochs[0]}

    @property
    def user_results_file(self) -> Path:
        """The result file per user of the chosen tokenizer."""
        folder = results_folder_of(self.folder, self.settings.get("results_dir"))
        return folder / f"test_results_{self.labels[self.chosen]}.json"

    @cached_property
    def user_results(self) -> Results:
        """What the chosen tokenizer recommended to each test user."""
        return read_results(self.user_results_file)

    @property
    def pretraining(self) -> "Run | None":
        """The run itself if it is a pre-training, or the finished one that it started from, if that is still there."""
        if self.is_pretraining:
            return self
        model = self.settings.get("pretrained_model")
        run = run_around(Path(model)) if model else None
        return run if run and run.is_finished else None


def resolve_winner(path: Path | str) -> Path:
    """Return the folder of a <name>.winner.json's run, which lies beside it; the path itself if it is no such file.

    hf:user/name, which every command takes as well, is downloaded first (`local_folder`).
    """
    path = local_folder(path)
    return path.parent / Path(str(read_json(path, "winner", "run"))).name if path.name.endswith(WINNER_SUFFIX) else path


def winning_row(selection: dict[str, Any]) -> int:
    """Return the 0-based index of the winner among the candidates of a <name>.winner.json."""
    same = ("run", "epoch", "prefix")
    rows = [[row[key] for key in same] for row in selection["candidates"]]
    return rows.index([selection["winner"][key] for key in same])


def load_run(path: Path | str) -> Run:
    """Read a finished run: its folder, or the <name>.winner.json beside it; raise InputError if it is not finished."""
    folder = resolve_winner(path)
    for name in (RESULTS_FILE, SETTINGS_FILE):
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no finished run ({name} is not there)")
    return Run(folder)


def run_around(path: Path) -> Run | None:
    """Return the run, finished or not, that a path is or lies in as model/ or checkpoints/epoch_N, if there is one."""
    folders = (path, *path.absolute().parents[:2])
    return next((Run(folder) for folder in folders if (folder / SETTINGS_FILE).is_file()), None)


def finished_runs(folder: Path) -> list[Run]:
    """Return the finished runs in <ckpt_dir>/<dataset>, by name."""
    return [run for run in map(Run, sorted(folder.glob("*"))) if run.is_finished]


def comparable(run: Run) -> list[Run]:
    """Return the finished runs beside `run` with the same users and interactions, itself among them."""
    beside = finished_runs(run.folder.parent)
    return [other for other in beside if other.drawn_users == run.drawn_users and other.has_data_of(run)]


def is_single(run: Run) -> bool:
    """Return whether a finished run has one tokenizer and no pre-training."""
    from_scratch = not run.is_pretraining and not run.settings.get("pretrained_model")
    return from_scratch and not run.method and len(run.results["per_tokenizer"]) == 1


def single_tokenizer_run(run: Run) -> Run | None:
    """Return the best on validation of the runs `comparable` with `run` with one tokenizer and no pre-training.

    None where there is none, or where `run` itself is such a run.
    """

    return None if is_single(run) else _best(list(filter(is_single, comparable(run))), run)


def baseline_runs(run: Run) -> list[Run]:
    """Return of each baseline but the most popular items the best run on validation `comparable` with `run`."""
    methods = [name for name in BASELINES.values() if name not in (BASELINES["popular"], run.method)]
    beside = comparable(run)
    found = [_best([other for other in beside if other.method == method], run) for method in methods]
    return [other for other in found if other]


def _best(runs: list[Run], run: Run) -> Run | None:
    """Return the best on validation of runs, by the metric of `run`, if one of them has it."""
    metric = run.settings["val_metric"]
    known = [other for other in runs if metric in other.tokenizer["valid"]]
    return max(known, key=lambda other: other.tokenizer["valid"][metric], default=None)
