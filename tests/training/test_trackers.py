from types import SimpleNamespace

from training.config import FinetuneConfig
from training.trackers import log_hyperparameters


def test_hyperparameters_come_with_the_final_metrics():
    calls = []
    writer = SimpleNamespace(add_hparams=lambda *arguments, **named: calls.append((arguments, named)))
    trackers = [SimpleNamespace(name="tensorboard", writer=writer), SimpleNamespace(name="wandb")]
    results = {"valid": {"ndcg@10": 0.2}, "test": {"ndcg@10": 0.1}}
    config = FinetuneConfig(sem_id_epochs=[1, 2])
    log_hyperparameters(SimpleNamespace(trackers=trackers, is_main_process=True), config, results)
    (((settings, metrics), named),) = calls
    assert (settings["lr"], settings["sem_id_epochs"]) == (0.001, "[1, 2]")
    assert metrics == {"final/valid_ndcg@10": 0.2, "final/test_ndcg@10": 0.1}
    assert named == {"run_name": "."}
