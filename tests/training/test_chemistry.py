import numpy as np
import pytest
import torch

from fieldflows.backends.mace_field.network import NetworkConfig, build_network
from fieldflows.training.chemistry import Sharing, correlate, element_blocks, similarity

NUMBERS = [9, 11, 17, 19, 22, 40]


def network(channels=8, seed=0):
    config = NetworkConfig(
        atomic_numbers=NUMBERS, atomic_energies=[0.0] * 6, max_ell=2, correlation=2, radial_MLP=[8],
        hidden_irreps=f"{channels}x0e + {channels}x1o",
    )  # fmt: skip
    return build_network(config, dtype=torch.float64, seed=seed)


def test_neighbors_in_the_periodic_table_are_similar():
    kernel = similarity(NUMBERS, 1.0)
    assert np.diag(kernel) == pytest.approx(np.ones(6))
    assert np.linalg.eigvalsh(kernel).min() > -1e-12
    f, na, cl, k, ti, zr = range(6)
    assert kernel[na, k] > 3 * kernel[na, cl]
    assert kernel[ti, zr] > 3 * kernel[ti, f]
    assert kernel[f, cl] > 3 * kernel[f, k]


def test_blocks_are_all_weights_per_element():
    made = network()
    blocks = list(element_blocks(made))
    assert all(len(block) == len(NUMBERS) for block in blocks)
    total = sum(block.numel() for block in blocks)
    expected = sum(
        value.numel()
        for name, value in made.named_parameters()
        if name.startswith("node_embedding") or "skip_tp" in name or "symmetric_contractions" in name
    )
    assert total == expected


def test_correlated_weights_have_the_kernel_as_covariance_and_the_same_size():
    made = network(channels=48)
    before = torch.cat([block.reshape(6, -1) / block.std() for block in element_blocks(made)], dim=1)
    spread = [float(block.detach().std()) for block in element_blocks(made)]
    correlate(made, 1.0)
    after = torch.cat(
        [block.reshape(6, -1) / s for block, s in zip(element_blocks(made), spread, strict=True)], dim=1
    ).detach()
    kernel = similarity(NUMBERS, 1.0)
    assert np.abs(np.cov(before.detach().numpy(), bias=True) - np.eye(6)).max() < 0.05
    assert np.abs(np.cov(after.numpy(), bias=True) - kernel).max() < 0.06


def test_sharing_draws_weights_to_the_mean_of_similar_elements():
    made = network()
    with torch.no_grad():
        for block in element_blocks(made):
            block.copy_(torch.arange(6.0, dtype=torch.float64).reshape(6, *[1] * (block.dim() - 1)).expand(block.shape))
    kernel = similarity(NUMBERS, 1.0)
    np.fill_diagonal(kernel, 0.0)
    mean = kernel @ np.arange(6.0) / kernel.sum(axis=1)
    Sharing(made, strength=2.0, length=1.0).apply(learning_rate=0.05)
    for block in element_blocks(made):
        expected = 0.9 * np.arange(6.0) + 0.1 * mean
        assert block.detach().reshape(6, -1)[:, 0].numpy() == pytest.approx(expected)
