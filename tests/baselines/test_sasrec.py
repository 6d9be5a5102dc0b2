from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from baselines.config import BaselineConfig
from baselines.data import Data
from baselines.sasrec import Network, SASRec

CPU = torch.device("cpu")


def small(config: BaselineConfig, **changes: object) -> BaselineConfig:
    return replace(config, d_model=8, dropout_rate=0.0, max_item_seq_len=5, **changes)


def test_later_items_and_padding_change_nothing_before_them(config):
    torch.manual_seed(0)
    network = Network(20, small(config)).eval()
    items = torch.tensor([[3, 1, 4, 1, 5]])
    out = network(items)
    for place in range(1, 5):
        for later in (torch.tensor([9]), torch.tensor([0])):
            changed = items.clone()
            changed[:, place:] = later
            assert torch.allclose(network(changed)[:, :place], out[:, :place], atol=1e-6)
        assert not torch.allclose(network(changed)[:, place], out[:, place], atol=1e-3)
    assert torch.allclose(network(items[:, :3]), out[:, :3], atol=1e-6)


def test_the_loss_is_that_of_the_next_item_at_every_place(config, data: Data):
    """Of the training parts 1 1 2 | 1 2 4 | 1 2 5 7 8, without dropout and at learning rate 0."""
    method = SASRec(small(config, lr=0.0), data.interactions, CPU)
    optimizer = torch.optim.SGD(method.network.parameters(), lr=0.0)
    loss, steps = method.train_epoch(optimizer, data.training, epoch=1)
    expected = []
    for items in ([1, 1, 2], [1, 2, 4], [1, 2, 5, 7, 8]):
        for end in range(1, len(items)):
            logits = method.network.logits(method.network(torch.tensor([items[:end]]))[0, -1])
            expected.append(cross_entropy(logits, torch.tensor(items[end] - 1)).item())
    assert len(expected) == 8
    assert steps == 1
    assert abs(loss - np.mean(expected)) < 1e-5


def test_scores_are_those_after_the_last_items(config, data: Data):
    method = SASRec(small(config), data.interactions, CPU)
    scores = method.scores(data.test, np.asarray([4, 4, 5, 1]))
    for row, history in enumerate(([1, 1, 2, 3], [1, 2, 4, 9], [2, 5, 7, 8, 2], [3])):
        hidden = method.network(torch.tensor([history]))[0, -1]
        assert torch.allclose(scores[row], method.network.logits(hidden), atol=1e-6)


def test_item_embeddings_stand_by_item_id(config, data: Data, tmp_path):
    method = SASRec(small(config), data.interactions, CPU)
    method.save(tmp_path)
    saved = np.load(tmp_path / "item_embeddings.npy")
    assert (saved.shape, saved.dtype) == ((20, 8), np.float32)
    assert np.array_equal(saved[6], method.network.items.weight[7].detach().numpy())


def test_every_user_is_trained_on_once_an_epoch_in_an_order_that_the_seed_decides(config, data: Data):
    method = SASRec(small(config, train_batch_size=2), data.interactions, CPU)
    epochs = [[batch.tolist() for batch in method.batches(data.training, epoch)] for epoch in range(1, 9)]
    for batches in epochs:
        assert sorted(user for batch in batches for user in batch) == [0, 1, 2]
        assert sorted(map(len, batches)) == [1, 2]
    assert epochs[0] == [batch.tolist() for batch in method.batches(data.training, 1)]
    assert any(epochs[0] != other for other in epochs[1:])
