import torch

from training.checkpointer import load_state_, process_state, state_tensors


def test_every_process_gets_its_own_back(recommender):
    """Two processes save; two, or one, load: dropout's generators and the sums of the epoch's losses."""
    optimizer = torch.optim.AdamW(recommender.parameters(), lr=0.1)
    sum(p.square().sum() for p in recommender.parameters()).backward()
    optimizer.step()
    processes, draws = [], []
    for index in range(2):
        torch.manual_seed(index)
        processes.append(process_state(torch.tensor([1.0, 2.0]) * 10**index))
        draws.append(torch.rand(3))
    tensors = {name: tensor.clone() for name, tensor in state_tensors(recommender, optimizer, processes).items()}
    moments = [value.clone() for state in optimizer.state.values() for value in state.values()]

    for index, num_processes, sums in ((0, 2, [1.0, 2.0]), (1, 2, [10.0, 20.0]), (0, 1, [11.0, 22.0])):
        with torch.no_grad():
            for parameter in recommender.parameters():
                parameter.zero_()
        fresh, loss_sums = torch.optim.AdamW(recommender.parameters(), lr=0.1), torch.zeros(2)
        load_state_(tensors, recommender, fresh, loss_sums, index, num_processes)
        assert loss_sums.tolist() == sums
        assert torch.equal(torch.rand(3), draws[index])
        for name, parameter in recommender.named_parameters():
            assert torch.equal(parameter, tensors[f"model/{name}"])
        found = [value for state in fresh.state.values() for value in state.values()]
        assert all(torch.equal(a, b) for a, b in zip(found, moments, strict=True))


def test_a_process_that_was_not_there_keeps_its_generator(recommender):
    optimizer = torch.optim.AdamW(recommender.parameters(), lr=0.1)
    tensors = state_tensors(recommender, optimizer, [process_state(torch.tensor([1.0, 2.0]))])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loss_sums = torch.zeros(2)
    load_state_(tensors, recommender, optimizer, loss_sums, process_index=1, num_processes=2)
    assert torch.equal(torch.rand(3), expected)
    assert loss_sums.tolist() == [0.0, 0.0]  # the first process has them
