"""The README.md of a model folder: what model hubs show, and read from the YAML at its top.

There is no pipeline_tag: hubs have none for recommending.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.token_table import QUALITY_FILE, TRAINING_FILE
from evaluation.compare import bootstrap_over_users
from evaluation.metrics import metric_titles
from evaluation.run import Run
from utils.cards import CARD_FILE, render_card
from utils.files import read_json
from utils.hub import NAME, PREFIX

if TYPE_CHECKING:
    from inference.model_folder import TrainedModel

TEMPLATE = Path(__file__).with_suffix(".md")
PLACEHOLDER = f"{PREFIX}user/name"  # in the template, until a push gives the name
TAGS = ("recommender-system", "sequential-recommendation", "generative-recommendation", "semantic-ids")
# Settings that are shown, beside those of the network; mtgrec.json has all.
SHOWN = (
    *("epochs", "lr", "train_batch_size", "gradient_accumulation_steps", "warmup_steps", "weight_decay"),
    *("dropout_rate", "max_item_seq_len", "train_user_ratio", "mixed_precision", "rand_seed"),
)


def model_card(model: "TrainedModel", run: Run | None) -> str:
    """Return the card of a model and of the run that it comes from, if that is known.

    Raises InputError where a file of the run or of its tokenizer is broken.
    """
    catalogue, settings = model.catalogue, model.settings
    name = run.folder.name if run else settings.get("run_name") or settings["dataset"]
    finished = run if run and run.is_finished and model.metrics else None  # and so its results are these weights'
    popular = catalogue.most_popular[:2]
    metadata = {"library_name": "mtgrec", "tags": [*TAGS, model.recommender.architecture.network]}
    test = model.metrics.get("test", {})
    titles = metric_titles(list(test))
    if test:
        metadata["model-index"] = [{"name": name, "results": [_test_result(settings["dataset"], test, titles)]}]
    return render_card(
        TEMPLATE,
        metadata,
        name=name,
        settings=settings,
        shown={flag: settings[flag] for flag in SHOWN if flag in settings},
        run=run,
        finished=finished.results if finished else {},
        network=model.recommender.architecture,
        parameters=sum(parameter.numel() for parameter in model.recommender.parameters()),
        catalogue=catalogue,
        group=catalogue.table.groups[0],
        example=json.dumps([catalogue.names[item] for item in popular], ensure_ascii=False),
        tokenizer=_about_tokenizer(model),
        titles=titles,
        test=test,
        **_about_users(finished, model),
    )


def name_on_hub(folder: Path, name: str) -> None:
    """Let the card of a model folder say hf:<name> in the template's lines on how to load, and for hf:user/name.

    Other names on a hub, which the user may have written, stay as they are.
    """
    card, new = folder / CARD_FILE, (PREFIX + name).encode()
    text = re.sub(re.escape(PLACEHOLDER).encode() + rb"(?![\w-]|\.\w)", new, card.read_bytes())
    for line in TEMPLATE.read_bytes().splitlines():
        before, found, after = line.partition(PLACEHOLDER.encode())
        if found:  # what an earlier push has named
            text = re.sub(re.escape(before) + (PREFIX + NAME).encode() + re.escape(after), before + new + after, text)
    card.write_bytes(text)


def _test_result(dataset: str, test: dict[str, float], titles: dict[str, str]) -> dict[str, Any]:
    """Return test metrics as an entry of a card's model-index."""
    return {
        "task": {"type": "sequential-recommendation", "name": "Next-item recommendation"},
        "dataset": {"type": re.sub(r"\W+", "-", dataset.lower()), "name": dataset, "split": "test"},
        "metrics": [{"type": name, "name": title, "value": round(test[name], 4)} for name, title in titles.items()],
    }


def _about_users(run: Run | None, model: "TrainedModel") -> dict[str, Any]:
    """Return intervals {metric: Interval} and how many items the test users got, from results per user if there are."""
    if run is None or not run.user_results_file.is_file() or len(run.user_results.targets) < 2:
        return {"intervals": {}}
    results, names = run.user_results, list(model.metrics["test"])
    covered = round(results.coverage(results.k, model.catalogue.num_items) * model.catalogue.num_items)
    intervals = dict(zip(names, bootstrap_over_users(results.per_user(names)), strict=True))
    return {"intervals": intervals, "k": results.k, "covered": covered}


def _about_tokenizer(model: "TrainedModel") -> dict[str, Any]:
    """Return what lies beside the semantic IDs: kind and encoder of the training, and the tokenizer's quality."""
    group, settings = model.catalogue.table.groups[0], model.settings
    folder = (Path(settings["data_dir"]) / settings["dataset"] / group.prefix).parent
    found = {}
    if (folder / TRAINING_FILE).is_file():
        trained = read_json(folder / TRAINING_FILE, "settings")
        found = {"kind": trained.get("kind", "rqvae"), "encoder": trained.get("sent_emb_model")}
    if (folder / QUALITY_FILE).is_file():
        report = read_json(folder / QUALITY_FILE)
        found["sizes"] = report["codebook_sizes"]
        found |= report["tokenizers"].get(str(group.epoch or "best"), {})
    return found
