"""Which fine-tunings finetune.sh runs, and which candidate of them wins on validation (paper section 2.4).

python -m training.candidates plan 90,100,110,120 5:9/15 --dataset=Sample  one line per fine-tuning, tab-separated
python -m training.candidates plan best middle:3 --dataset=Sample          from pre-training's best epoch, with the
                                                                           tokenizers that are nearest to all others
python -m training.candidates select finetune RUN... --dataset=Sample      table of candidates, <name>.winner.json

A candidate is a fine-tuned run with one of its tokenizers.
"""

import json
import os
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from data.distances import distances, most_central
from data.interactions import dataset_folder
from data.token_table import Vocabulary, flags_of_tokenizers, group_labels, level_sizes, resolve_groups
from evaluation.run import RESULTS_FILE, WINNER_SUFFIX, Run, finished_runs, run_around, winning_row
from model.recommender import ARCHITECTURE_FILE, read_architecture
from training.config import FinetuneConfig
from training.data import Dataset
from utils.config import expand_epochs, parse_config
from utils.errors import InputError
from utils.files import write_json
from utils.hub import local_folder
from utils.runtime import run_command
from utils.text_table import text_table


@dataclass
class PlanConfig(FinetuneConfig):
    """The flags of finetune.py, and what finetune.sh is told by its environment."""

    pretrained: str = ""
    """Run or model folder, none for from scratch, empty for the newest finished pre-training; pretrained_model wins."""
    joint: bool = False
    """One run with all tokenizers for each checkpoint instead of one for each tokenizer."""


@dataclass(frozen=True)
class FineTuning:
    """One run that is planned."""

    name: str  # what distinguishes it: <checkpoint>_<tokenizer>, such as 90_9986, best_9998 or scratch_joint
    model: str  # folder of the checkpoint, "" to train from scratch
    prefixes: tuple[str, ...]  # of its tokenizers' files; one, but for joint fine-tuning
    epochs: tuple[int | str | None, ...]  # 1-based; None: as the prefixes say; in a dry run perhaps a word

    def line(self) -> str:
        """Return name, prefixes, epochs and model, tab-separated, as finetune.sh reads them."""
        prefixes = self.prefixes[0] if len(self.prefixes) == 1 else json.dumps(self.prefixes, separators=(",", ":"))
        epochs = "null" if None in self.epochs else f"[{','.join(map(str, self.epochs))}]"
        return "\t".join([self.name, prefixes, epochs, self.model])


def combine(models: dict[str, str], tokenizers: list[tuple[str, int | str | None]], joint: bool) -> list[FineTuning]:
    """Return every checkpoint {name: model folder} with every tokenizer (prefix, epoch), or with all together."""
    parts = {"joint": tokenizers}
    if not joint:
        parts = {label: [own] for label, own in zip(group_labels(tokenizers), tokenizers, strict=True)}
    flags = {label: flags_of_tokenizers(own) for label, own in parts.items()}
    return [
        FineTuning(f"{name}_{label}", model, tuple(prefixes), tuple(epochs or [None]))
        for name, model in models.items()
        for label, (prefixes, epochs) in flags.items()
    ]


def newest_pretraining(folder: Path) -> Path:
    """Return the run folder of the newest finished pre-training under <ckpt_dir>/<dataset>; InputError without one."""
    runs = [run.folder for run in finished_runs(folder) if run.is_pretraining]
    if not runs:
        raise InputError(
            f"{folder} holds no finished pre-training; run pretrain.sh first, or set PRETRAINED=<run folder> "
            "or PRETRAINED=none"
        )
    return max(runs, key=lambda run: (run / RESULTS_FILE).stat().st_mtime)


def checkpoints_of(run: Run, wanted: list[int]) -> dict[str, Path]:
    """Return {name: model folder} of the wanted 1-based epochs that were kept; where there are none, best and last.

    With no epochs wanted it is the best one alone.
    """
    best_epoch, kept, wanted_text = run.results["best_epoch"], run.checkpoints, ", ".join(map(str, wanted))
    chosen = {str(epoch): kept[epoch] for epoch in wanted if epoch in kept}
    if chosen:
        if len(chosen) < len(wanted):
            note(f"{run.folder} kept only {', '.join(chosen)} of the epochs {wanted_text}")
        return chosen
    if not wanted:
        note(f"the best epoch of pre-training ({best_epoch}) is fine-tuned")
        return {"best": run.model}
    last = max(kept, default=best_epoch)
    are = " is" if last == best_epoch else f" and its last ({last}) are"
    note(f"{run.folder} kept none of the epochs {wanted_text}: its best epoch ({best_epoch}){are} fine-tuned")
    return {"best": run.model} | ({} if last == best_epoch else {"last": kept[last]})


def tokenizers_back(present: list[int], back: list[int]) -> list[int]:
    """Return the epochs that stand `back` places from the last (0 is the last), in rising order.

    Places before the first epoch are left out, saying so; where none is left, the first epoch is taken.
    """
    fitting = [place for place in back if place < len(present)]
    if len(fitting) < len(back):
        cut = fitting or "the first"
        note(f"only {len(present)} tokenizers are there: places {back} back from the last are cut to {cut}")
    return sorted(present[-1 - place] for place in fitting) or present[:1]


def middle_tokenizers(dataset: Dataset, count: int) -> list[int]:
    """Return the epochs of the `count` tokenizers that are nearest to all others, in rising order.

    Differs from the paper, which names epochs: its 9986..9991 of 9976..10000 are the middle of a walk as well.
    """
    matrix = distances(dataset.table.tokens[:, 1:].numpy())
    return [dataset.groups[index].epoch for index in most_central(matrix, count)]


def sizes_of(model: str, settings: dict, config: PlanConfig) -> tuple[int, ...]:
    """Return the codes of each level that the model to be fine-tuned has, or else those of the flags."""
    if model and not settings and Path(model, ARCHITECTURE_FILE).is_file():
        return read_architecture(model).level_sizes
    return level_sizes(**{name: settings.get(name, getattr(config, name)) for name in ("n_codebooks", "codebook_size")})


def plan(checkpoints: list[int], places: str, config: PlanConfig) -> list[FineTuning]:
    """Return what is to be fine-tuned.

    Args:
        checkpoints: 1-based epochs of pre-training that are wanted; none for its best one.
        places: Of the tokenizers, counted back from the last, such as 9:14, or middle:<how many>. 9:14/25 is for 25 of
            them: after a pre-training with another number it is middle:6. config.sem_id_epochs overrides it.
        config: The flags.
    """
    dataset = dataset_folder(config.data_dir, config.dataset)
    models, settings = starting_points(checkpoints, config)
    prefix = config.token_prefix or settings.get("token_prefix")
    asked, trained = expand_epochs(config.sem_id_epochs), settings.get("sem_id_epochs")
    last = None if asked or trained else config.num_tokenizers
    groups = resolve_groups(dataset, prefix, None, config.token_suffix, last)
    places, _, usual = places.partition("/")
    if usual and trained and not asked and len(trained) != int(usual):
        places = f"middle:{len(expand_epochs(places))}"
        note(f"tokenizers in pre-training: {len(trained)}, not {usual}; those in the middle are fine-tuned")
    word, _, count = places.partition(":")
    if word == "middle" and (not count.isdecimal() or int(count) == 0):
        raise InputError(f"{places} names no tokenizers; write how many, such as middle:3")
    tokenizers: list[tuple[str, int | None]] = []
    for name in dict.fromkeys(group.prefix for group in groups):
        own = [group for group in groups if group.prefix == name]
        present = trained or [group.epoch for group in own if group.epoch is not None]
        if asked:  # kinds may have epochs of their own
            chosen = [group.epoch for group in own if group.epoch in asked]
        elif not present:  # one tokenizer without a number, of k-means for instance
            chosen = [None]
        elif word == "middle":
            vocabulary = Vocabulary(sizes_of(next(iter(models.values())), settings, config))
            chosen = middle_tokenizers(Dataset(dataset, [g for g in own if g.epoch in present], vocabulary), int(count))
        else:
            chosen = tokenizers_back(present, expand_epochs(places))
        tokenizers += [(name, epoch) for epoch in chosen]
    there = {(group.prefix, group.epoch) for group in groups}
    absent = set(asked or []) - {epoch for _, epoch in there} | {pair[1] for pair in tokenizers if pair not in there}
    if absent:
        raise InputError(
            f"{dataset} has no tokenizers of the epochs {', '.join(map(str, sorted(absent)))}; "
            f"there are {', '.join(sorted(str(epoch or 'best') for _, epoch in there))}"
        )
    return combine(models, tokenizers, config.joint)


def starting_points(checkpoints: list[int], config: PlanConfig) -> tuple[dict[str, str], dict]:
    """Return {name: model folder} of what is fine-tuned, and the settings of the run that it lies in, if any."""
    pretrained = config.pretrained_model or config.pretrained
    if pretrained == "none":
        note("no pre-trained model: training from scratch")
        return {"scratch": ""}, {}
    path = local_folder(pretrained) if pretrained else newest_pretraining(Path(config.ckpt_dir) / config.dataset)
    if not path.exists():
        raise InputError(f"the pre-trained model {path} does not exist; PRETRAINED=none trains from scratch")
    run = run_around(path)
    if run and run.folder == path:
        if not run.is_finished:
            raise InputError(f"{path} is an unfinished run; name one of its checkpoints, or finish it first")
        models = checkpoints_of(run, checkpoints)
    else:
        models = {path.stem if path.is_file() else path.name: path}
    note(f"pre-trained: {path}")
    return {name: str(model) for name, model in models.items()}, run.settings if run else {}


def outline(checkpoints: list[int], config: PlanConfig) -> list[FineTuning]:
    """Return a plan for a dry run without the files to plan by, with words in capitals for what is not known yet."""
    pretrained = config.pretrained_model or config.pretrained or "PRETRAINING"
    models = {"best": f"{pretrained}/model"}
    if pretrained == "none":
        models = {"scratch": ""}
    elif checkpoints:
        models = {"CHECKPOINT": f"{pretrained}/checkpoints/epoch_CHECKPOINT"}
    prefixes = config.token_prefix or "PREFIX"
    prefixes = [prefixes] if isinstance(prefixes, str) else prefixes
    epochs = expand_epochs(config.sem_id_epochs) or ["TOKENIZERS" if config.joint else "TOKENIZER"]
    return combine(models, [(prefix, epoch) for prefix in prefixes for epoch in epochs], config.joint)


def select(runs: list[Path]) -> dict:
    """Compare finished runs by validation; one with several tokenizers is a candidate with each of them.

    Returns:
        {"winner": candidate, "candidates": [...]}, each {"run", "epoch", "prefix", "best_epoch", "valid", "test"}; only
        the winner has "test", since nothing is to be chosen by it.
    """
    candidates = [
        {"run": str(run.folder), "best_epoch": run.results["best_epoch"], **row}
        for run in map(Run, runs)
        for row in run.results["per_tokenizer"]
    ]
    metric = Run(runs[0]).settings["val_metric"]
    winner = max(candidates, key=lambda candidate: candidate["valid"][metric])
    return {
        "val_metric": metric,
        "winner": winner,
        "candidates": [{key: value for key, value in row.items() if key != "test"} for row in candidates],
    }


def selection_table(selection: dict) -> str:
    """Return the candidates' validation metrics and the winner's test metrics as text."""
    winner, title = selection["winner"], "test of the winner:"
    names = list(winner["valid"])
    rows = []
    for number, row in enumerate(selection["candidates"]):
        values = [f"{row['valid'][name]:9.4f}" for name in names]
        mark = "<- winner" if number == winning_row(selection) else ""
        rows.append([Path(row["run"]).name, str(row["epoch"] or "best"), str(row["best_epoch"]), *values, mark])
    rows.append(["", "", "", *(f"{winner['test'][name]:9.4f}" for name in names), ""])
    table = text_table(["run", "tokenizer", "epoch", *names, ""], rows).splitlines()
    table[-1] = title + table[-1][len(title) :]
    return "\n".join([f"validation (the winner has the best {selection['val_metric']}):", *table])


def note(text: str) -> None:
    """Tell the user something on stderr; stdout carries the plan."""
    print(text, file=sys.stderr)


def print_plan(checkpoints: str, places: str, config: PlanConfig) -> None:
    """Print a line for each fine-tuning, as bytes: a path is not to be changed for what a terminal can print."""
    if config.run_name is not None:
        raise InputError(
            f"finetune.sh makes the names of its runs: set RUN_NAME={config.run_name} instead of --run_name"
        )
    wanted = [] if checkpoints == "best" else expand_epochs(checkpoints)
    try:
        planned = plan(wanted, places, config)
    except InputError as error:
        if os.environ.get("DRY_RUN") != "1":  # utils/switches.sh makes 1 of the other words
            raise
        note(f"dry run, the words in capitals are not known yet: {error}")
        planned = outline(wanted, config)
    for fine_tuning in planned:
        sys.stdout.buffer.write(os.fsencode(fine_tuning.line() + "\n"))
    sys.stdout.flush()


def print_selection(name: str, runs: list[str], config: PlanConfig) -> None:
    """Print the candidates of the named runs and write <name>.winner.json."""
    folder = Path(config.ckpt_dir) / config.dataset
    selection, file = select([folder / run for run in runs]), folder / f"{name}{WINNER_SUFFIX}"
    write_json(file, selection)
    print(selection_table(selection))
    print(f"winner: {selection['winner']['run']}  (all of this: {file})")


def main() -> None:
    """Run one of the two subcommands."""
    words = list(takewhile(lambda argument: not argument.startswith("--"), sys.argv[1:]))
    config, _ = parse_config(PlanConfig, sys.argv[1 + len(words) :], "finetune.sh", "Flags of finetune.py.")
    match words:
        case ["plan", checkpoints, places]:
            print_plan(checkpoints, places, config)
        case ["select", name, *runs] if runs:
            print_selection(name, runs, config)
        case _:
            raise InputError(
                "usage: training.candidates plan CHECKPOINTS|best PLACES|middle:COUNT | select NAME RUN..."
            )


if __name__ == "__main__":
    run_command(main)
