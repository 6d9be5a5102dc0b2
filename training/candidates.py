"""Which (checkpoint, tokenizer) pairs finetune.sh trains, and which of them wins on validation (paper section 2.4).

python -m training.candidates plan 90,100,110,120 5:9 --dataset=Sample     one line per pair, tab-separated
python -m training.candidates plan best 0:4 --dataset=Sample               from pre-training's best epoch
python -m training.candidates select finetune --dataset=Sample             table of the pairs, <name>.winner.json
"""

import json
import os
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from data.interactions import dataset_folder
from data.token_table import group_labels, resolve_groups
from evaluation.run import RESULTS_FILE, WINNER_SUFFIX, Run, finished_runs, run_around, winning_row
from training.config import FinetuneConfig
from utils.config import expand_epochs, parse_config
from utils.errors import InputError
from utils.files import write_json
from utils.runtime import run_command
from utils.text_table import text_table


@dataclass(frozen=True)
class Candidate:
    """One fine-tuning run.

    Attributes:
        name: What distinguishes it in run names: <checkpoint>_<tokenizer>, such as 90_9986, best_9998 or scratch_joint.
        model: Folder of the checkpoint, "" to train from scratch.
        prefixes: Prefixes of its tokenizers' files; one, but for joint fine-tuning.
        epochs: 1-based RQ-VAE epochs of its tokenizers; one, but for joint fine-tuning. In a dry run a word where they
            are not known yet.
    """

    name: str
    model: str
    prefixes: tuple[str, ...]
    epochs: tuple[int | str, ...]

    def line(self) -> str:
        """Return name, prefixes, epochs and model, tab-separated, as finetune.sh reads them."""
        prefixes = self.prefixes[0] if len(self.prefixes) == 1 else json.dumps(self.prefixes, separators=(",", ":"))
        epochs = "[" + ",".join(map(str, self.epochs)) + "]"
        return "\t".join([self.name, prefixes, epochs, self.model])


def combine(models: dict[str, str], tokenizers: list[tuple[str, int | str]], joint: bool) -> list[Candidate]:
    """Return every checkpoint {name: model folder} with every tokenizer (prefix, epoch), or with all together."""
    if joint:
        prefixes, epochs = (tuple(dict.fromkeys(part)) for part in zip(*tokenizers, strict=True))
        return [Candidate(f"{name}_joint", model, prefixes, epochs) for name, model in models.items()]
    labels = group_labels(tokenizers)
    return [
        Candidate(f"{name}_{label}", model, (prefix,), (epoch,))
        for name, model in models.items()
        for label, (prefix, epoch) in zip(labels, tokenizers, strict=True)
    ]


def newest_pretraining(folder: Path) -> Path:
    """Return the run folder of the newest finished pre-training under <ckpt_dir>/<dataset>.

    Raises:
        InputError: There is none.
    """
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
    best_epoch, kept = run.results["best_epoch"], run.checkpoints
    if not wanted:
        note(f"the best epoch of pre-training ({best_epoch}) is fine-tuned")
        return {"best": run.model}
    chosen = {str(epoch): kept[epoch] for epoch in wanted if epoch in kept}
    if chosen:
        if len(chosen) < len(wanted):
            note(f"{run.folder} kept only {', '.join(chosen)} of the epochs {', '.join(map(str, wanted))}")
        return chosen
    chosen = {"best": run.model}
    if kept and max(kept) != best_epoch:
        chosen["last"] = kept[max(kept)]
    wanted_text = ", ".join(map(str, wanted))
    last = f" and its last ({max(kept)}) are" if "last" in chosen else " is"
    note(f"{run.folder} kept none of the epochs {wanted_text}: its best epoch ({best_epoch}){last} fine-tuned")
    return chosen


def tokenizers_back(present: list[int], back: list[int]) -> list[int]:
    """Return the epochs that stand `back` places from the last (0 is the last), in rising order.

    Places before the first epoch are left out, saying so; where none is left, the first epoch is taken.
    """
    fitting = [place for place in back if place < len(present)]
    if len(fitting) < len(back):
        note(
            f"only {len(present)} tokenizers are there: places {back} back from the last are cut to "
            f"{fitting or 'the first'}"
        )
    return sorted(present[-1 - place] for place in fitting) or present[:1]


def plan(
    checkpoints: list[int], back: list[int], config: FinetuneConfig, pretrained: str, joint: bool
) -> list[Candidate]:
    """Return the fine-tuning runs.

    Args:
        checkpoints: 1-based epochs of pre-training that are wanted; none for its best one.
        back: Places of the tokenizers, counted back from the last.
        config: Fine-tuning flags; sem_id_epochs overrides `back`, pretrained_model overrides `pretrained`.
        pretrained: Run or model folder, "none" for from scratch, "" for the newest finished pre-training.
        joint: One run with all tokenizers for each checkpoint instead of one for each tokenizer.
    """
    pretrained = config.pretrained_model or pretrained
    dataset = dataset_folder(config.data_dir, config.dataset)
    settings: dict = {}
    if pretrained == "none":
        models = {"scratch": ""}
        note("no pre-trained model: training from scratch")
    else:
        path = Path(pretrained) if pretrained else newest_pretraining(Path(config.ckpt_dir) / config.dataset)
        if not path.exists():
            raise InputError(f"the pre-trained model {path} does not exist; PRETRAINED=none trains from scratch")
        run = run_around(path)
        if run and run.folder == path and not run.is_finished:
            raise InputError(f"{path} is an unfinished run; name one of its checkpoints, or finish it first")
        if run and run.folder == path:
            models = checkpoints_of(run, checkpoints)
        else:
            models = {path.stem if path.is_file() else path.name: path}
        settings = run.settings if run else {}
        note(f"pre-trained: {path}")
    groups = resolve_groups(
        dataset, config.token_prefix or settings.get("token_prefix"), None, config.token_suffix, config.num_tokenizers
    )
    prefixes = list(dict.fromkeys(group.prefix for group in groups))
    epochs = expand_epochs(config.sem_id_epochs)
    if epochs is None:
        present = settings.get("sem_id_epochs") or sorted({group.epoch for group in groups if group.epoch is not None})
        if not present:
            raise InputError(f"{dataset} has no numbered .{config.token_suffix} files; make them with tokenizer/run.sh")
        epochs = tokenizers_back(present, back)
    tokenizers = [(prefix, epoch) for prefix in prefixes for epoch in epochs]
    return combine({name: str(model) for name, model in models.items()}, tokenizers, joint)


def outline(checkpoints: list[int], config: FinetuneConfig, pretrained: str, joint: bool) -> list[Candidate]:
    """Return a plan for a dry run without the files to plan by, with words in capitals for what is not known yet."""
    pretrained = config.pretrained_model or pretrained
    if pretrained == "none":
        models = {"scratch": ""}
    elif checkpoints:
        models = {"CHECKPOINT": f"{pretrained or 'PRETRAINING'}/checkpoints/epoch_CHECKPOINT"}
    else:
        models = {"best": f"{pretrained or 'PRETRAINING'}/model"}
    prefixes = config.token_prefix or "PREFIX"
    epochs = expand_epochs(config.sem_id_epochs) or ["TOKENIZERS" if joint else "TOKENIZER"]
    tokenizers = [
        (prefix, epoch) for prefix in ([prefixes] if isinstance(prefixes, str) else prefixes) for epoch in epochs
    ]
    return combine(models, tokenizers, joint)


def select(runs: list[Path]) -> dict:
    """Compare finished runs by validation.

    Args:
        runs: Run folders; a run with several tokenizers counts as one candidate for each of them.

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
    winner, names = selection["winner"], list(selection["winner"]["valid"])

    def values(metrics: dict[str, float]) -> list[str]:
        return [f"{metrics[name]:9.4f}" for name in names]

    rows = []
    for number, row in enumerate(selection["candidates"]):
        tokenizer, mark = str(row["epoch"] or "best"), "<- winner" if number == winning_row(selection) else ""
        rows.append([Path(row["run"]).name, tokenizer, str(row["best_epoch"]), *values(row["valid"]), mark])
    rows.append(["", "", "", *values(winner["test"]), ""])
    lines = text_table(["run", "tokenizer", "epoch", *names, ""], rows).splitlines()
    title = "test of the winner:"
    lines[-1] = title + lines[-1][len(title) :]
    return "\n".join([f"validation (the winner has the best {selection['val_metric']}):", *lines])


def note(text: str) -> None:
    """Tell the user something on stderr; stdout carries the plan."""
    print(text, file=sys.stderr)


def main() -> None:
    """Run one of the two subcommands."""
    arguments = sys.argv[1:]
    words = list(takewhile(lambda argument: not argument.startswith("--"), arguments))
    switches = [argument for argument in arguments if argument.startswith(("--pretrained=", "--joint="))]
    flags = [argument for argument in arguments[len(words) :] if argument not in switches]
    config, _ = parse_config(FinetuneConfig, flags, "finetune.sh", "Flags of finetune.py.")
    own = dict(switch.removeprefix("--").split("=", 1) for switch in switches)
    if words[:1] == ["plan"] and len(words) == 3:
        if config.run_name is not None:
            raise InputError(
                f"finetune.sh makes the names of its runs: set RUN_NAME={config.run_name} instead of --run_name"
            )
        pretrained, joint = own.get("pretrained", ""), own.get("joint", "") == "true"
        checkpoints = [] if words[1] == "best" else expand_epochs(words[1])
        try:
            candidates = plan(checkpoints, expand_epochs(words[2]), config, pretrained, joint)
        except InputError as error:
            if os.environ.get("DRY_RUN") != "1":
                raise
            note(f"dry run, the words in capitals are not known yet: {error}")
            candidates = outline(checkpoints, config, pretrained, joint)
        print(*(candidate.line() for candidate in candidates), sep="\n")
    elif words[:1] == ["select"] and len(words) > 2:
        folder = Path(config.ckpt_dir) / config.dataset
        selection = select([folder / name for name in words[2:]])
        file = folder / f"{words[1]}{WINNER_SUFFIX}"
        write_json(file, selection)
        print(selection_table(selection))
        print(f"winner: {selection['winner']['run']}  (all of this: {file})")
    else:
        raise InputError("usage: training.candidates plan CHECKPOINTS|best PLACES | select NAME RUN...")


if __name__ == "__main__":
    run_command(main)
