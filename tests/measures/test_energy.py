"""Energy in subspaces against literal products, its nulls against brute-force simulation."""

import pytest
import torch

from offprincipal.measures import energy
from offprincipal.measures.seeds import torch_generator


def haar(n: int, generator: torch.Generator) -> torch.Tensor:
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def shares(delta: torch.Tensor, k: int) -> torch.Tensor:
    """Energy of D in fixed subspaces: by invariance the first k coordinates will do."""
    parts = delta[:k].square().sum(), delta[:, :k].square().sum(), delta[:k, :k].square().sum()
    return torch.stack(parts) / delta.square().sum()


@pytest.mark.parametrize(("shape", "k"), [((20, 12), 3), ((12, 30), 6)])
def test_gauss_moments_equal_simulation(shape, k):
    generator = torch_generator(0, "gauss")
    drawn = torch.stack([shares(torch.randn(shape, generator=generator, dtype=torch.float64), k) for _ in range(3000)])
    expected = energy.gauss(shape, k)
    for i, side in enumerate(("left", "right", "both")):
        mean, sd = getattr(expected, side)
        assert float(drawn[:, i].mean()) == pytest.approx(mean, abs=4 * sd / 3000**0.5)
        assert float(drawn[:, i].std()) == pytest.approx(sd, rel=0.08)


@pytest.mark.parametrize("decay", [0.0, 1.0, 3.0])
def test_haar_moments_equal_simulation(decay):
    shape, k = (16, 10), 4
    values = torch.exp(-decay * torch.linspace(0, 1, 10, dtype=torch.float64))
    generator, drawn = torch_generator(1, "haar"), []
    for _ in range(2000):
        u, v = haar(16, generator)[:, :10], haar(10, generator)
        drawn.append(shares(u * values @ v.T, k))
    expected, found = energy.haar(values, shape, k), torch.stack(drawn)
    for i, side in enumerate(("left", "right", "both")):
        mean, sd = getattr(expected, side)
        assert float(found[:, i].mean()) == pytest.approx(mean, abs=4 * sd / 2000**0.5 + 1e-9)
        assert float(found[:, i].std()) == pytest.approx(sd, rel=0.1, abs=1e-9)
