from collections.abc import Callable
from types import SimpleNamespace

from tokenizer.config import TokenizerConfig
from tokenizer.epoch_writer import EpochWriter


def test_seconds_count_what_came_before_an_interruption(make_config: Callable[..., TokenizerConfig]):
    config = make_config()
    config.tokenizer_folder.mkdir(parents=True)
    snapshot = SimpleNamespace(values={"metrics_size": 0, "epoch": 1, "seconds": 50.0})
    with EpochWriter("RQ-VAE", config, snapshot) as writer:
        assert 50 <= writer.seconds < 60
