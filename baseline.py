"""Measure a method without semantic IDs on the same splits, beside the generative ones.

    python baseline.py --dataset=Sample --method=popular      the most popular items
    python baseline.py --dataset=Sample --method=itemknn      what others had after a user's last items; seconds
    python baseline.py --dataset=Sample --method=sasrec       SASRec, cross-entropy over all items; minutes on a CPU

The run's folder, <ckpt_dir>/<dataset>/<run_name>, is read by report.py and evaluate.py as any other. All items are
ranked, seen ones too. SASRec also leaves item_embeddings.npy, float32 [N, D], row i = item id i + 1.
"""

import time

import utils  # noqa: F401  # isort: skip  (before torch)
import numpy as np

from baselines.config import BaselineConfig
from baselines.data import Baseline, Data, load_data
from baselines.methods import METHODS
from evaluation.results import Results
from evaluation.run import ENVIRONMENT_FILE, RESULTS_FILE, results_folder_of
from training.run_folder import RunFolder
from utils.config import parse_config
from utils.files import write_json
from utils.runtime import choose_device, describe_environment, peak_memory_mb, run_command, seed_everything


def main(argv: list[str] | None = None) -> None:
    """Measure a baseline; `argv` are the flags, by default the command line's."""
    config, _ = parse_config(BaselineConfig, argv, "baseline.py", __doc__)
    path, device = config.run_folder, choose_device(config.device)
    run, data = RunFolder(path, is_main=True, log_file=path / "log.txt"), load_data(config)
    if run.claim(config, data.sources) == "reuse":
        print(f"{path} is already finished with these settings")
        return
    seed_everything(config.rand_seed)
    run.lock()
    try:
        run.claim_again(config, data.sources)
        run.create(config)
        environment = describe_environment(device, num_processes=1)
        write_json(path / ENVIRONMENT_FILE, environment | {"sources": data.sources()})
        run.say(
            f"{config.method} on {config.dataset}: {data.interactions.num_users:,} users, "
            f"{data.interactions.num_items:,} items, {len(data.training.items):,} training interactions, on {device}"
        )
        method = METHODS[config.method].learn(config, data, run)
        method.save(path)
        write_results(config, data, method, run)
    finally:
        run.unlock()


def write_results(config: BaselineConfig, data: Data, method: Baseline, run: RunFolder) -> None:
    """Test the method; write the result file per user, and last results.json, which tells that the run is finished."""
    started, names = time.perf_counter(), np.asarray(data.interactions.item_names, dtype=object)
    items, scores = method.recommend(data.test, max(config.topk))
    results = Results(
        [str(data.interactions.user_names[user]) for user in data.interactions.users_of(data.test)],
        names[items].tolist(),
        scores.tolist(),
        names[data.interactions.items[data.test]].tolist(),
    )
    results.save(results_folder_of(run.path, config.results_dir) / "test_results_best.json")
    valid = method.metrics(data.interactions, data.valid, config.metric_names)
    test, seconds = results.metrics(config.metric_names), time.perf_counter() - started
    values = {"mean": test, "seconds": seconds, "peak_memory_mb": peak_memory_mb(choose_device(config.device))}
    shown = "\n".join(
        f"{split:6}" + "".join(f"  {name} {value:.4f}" for name, value in metrics.items())
        for split, metrics in (("valid.", valid), ("test", test))
    )
    chosen = ", ".join(f"{name} {value:g}" for name, value in method.best.items())
    run.emit("test", values, {}, 0, *([f"chosen on validation: {chosen}"] if chosen else []), shown)
    row = {"epoch": None, "prefix": config.method, "valid": valid, "test": test}
    write_json(
        run.path / RESULTS_FILE,
        {"valid": valid, "test": test, "per_tokenizer": [row], **method.best, "num_users": len(data.test)},
    )


if __name__ == "__main__":
    run_command(main)
