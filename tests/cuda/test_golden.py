"""The reference code's numbers on the device, to the tolerances that the CPU is held to."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests.cuda.conftest import as_on_a_gpu
from tests.golden.test_golden_influence import optimizer_at
from tests.golden.test_golden_recommender import TOLERANCE, assert_same_beams, beam_widths, take_golden_step
from tests.golden.test_rqvae import LEARNING_RATE, STEPS, build, numbers, part, tensors  # noqa: F401  (fixtures)
from training.curriculum import estimate_influence
from training.trainer import cosine_factor


def test_logits_and_losses(world, golden_tokenization, device):
    recommender = world.recommender().to(device)
    for group in range(world.table.num_groups):
        batch = golden_tokenization.batch(world.positions("valid"), group)
        with torch.no_grad(), as_on_a_gpu():
            logits = recommender.logits(batch.input_ids, batch.labels, batch.lengths)
            loss = recommender(batch.input_ids, batch.labels, batch.lengths).mean()
        assert_close(logits.cpu(), world.case.recommender[f"logits/valid/{group}"], **TOLERANCE)
        expected = world.case.recommender_json["valid_loss_per_tokenizer"][str(group)]
        assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_beams(world, golden_tokenization, device):
    recommender = world.recommender().to(device)
    batch = golden_tokenization.batch(world.positions("test"), world.test_group)
    for width in beam_widths(world.case.recommender):
        expected = [world.case.recommender[f"beam/{width}/{name}"] for name in ("preds", "scores")]
        with as_on_a_gpu():
            found = recommender.generate(batch.input_ids, batch.lengths, width, expected[0].shape[1])
        assert_same_beams(*(tensor.cpu() for tensor in found), *expected)


def test_training_steps(world, golden_tokenization, train_steps, device):
    recommender = world.recommender().to(device).train()
    decay, fused = train_steps.weight_decay, device.type == "cuda" or None
    optimizer = torch.optim.AdamW(recommender.parameters(), lr=train_steps.lr, weight_decay=decay, fused=fused)
    for step, (loss, norm, _) in enumerate(world.case.recommender_json["train_steps"]["rows"]):
        factor = cosine_factor(step, train_steps.warmup, train_steps.total)
        optimizer.param_groups[0]["lr"] = train_steps.lr * factor
        with as_on_a_gpu():
            taken = take_golden_step(world, golden_tokenization, train_steps, recommender, optimizer, step)
        assert taken == pytest.approx([loss, norm], rel=1e-4, abs=1e-5)
    ours = recommender.state_dict()
    for name, value in world.case.weights("weights_after_5_steps/").items():
        assert_close(ours[name].cpu(), value, **TOLERANCE)


def test_influence(world, golden_tokenization, accelerator, device):
    settings, recommender = world.case.recommender_json["influence"], world.recommender().to(device)
    optimizer = optimizer_at(world, recommender, "stage0")
    for parameter, state in optimizer.state.items():
        optimizer.state[parameter] = {name: value.to(device) for name, value in state.items()}
    train, valid = (world.positions(split)[: settings[f"n_{split}_examples"]] for split in ("train", "valid"))
    if len(train) % settings["batch_size"] or len(valid) % settings["batch_size"]:
        pytest.skip("the case's last batch is smaller, and here examples weigh the same, not batches")
    with as_on_a_gpu():
        ours = estimate_influence(recommender, optimizer, golden_tokenization, train, valid, 37, accelerator)
    assert np.allclose(ours, world.case.recommender["influence/stage0"].mean(1).numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("vq_type", ["ema", "vq"])
def test_rqvae(tensors, numbers, vq_type, device):  # noqa: F811
    model, inputs = build(part(tensors, f"{vq_type}/before/"), vq_type).to(device).train(), tensors["input"].to(device)
    assert torch.equal(model.encode(inputs).cpu(), tensors[f"{vq_type}/eval/codes"])
    optimizer = torch.optim.Adagrad(model.parameters(), lr=LEARNING_RATE)
    expected = numbers[vq_type]["train_steps_total_recon_quant_unused"]
    for rows, (total, reconstruction, quantization, _) in zip(STEPS, expected, strict=True):
        output = model(inputs[rows])
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses = [output.loss.item(), output.reconstruction_loss.item(), output.quantization_loss.item()]
        assert losses == pytest.approx([total, reconstruction, quantization], rel=1e-4, abs=1e-5)
    after = part(tensors, f"{vq_type}/after/")
    for name, value in model.state_dict().items():
        assert_close(value.cpu(), after[name], rtol=1e-4, atol=1e-5)
    assert torch.equal(model.encode(inputs).cpu(), tensors[f"{vq_type}/after_codes"])
