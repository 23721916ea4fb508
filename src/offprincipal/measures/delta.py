"""The difference of two matrices: its singular values, and its energy in the base's leading subspaces."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from offprincipal.measures import energy, masks
from offprincipal.measures._gram import Update, gram
from offprincipal.measures._slices import tall
from offprincipal.measures.spectrum import Factors


@dataclass(frozen=True)
class Delta:
    """What geometry asks of ``D = W - W0``.

    Attributes:
        values: float64 [short], singular values, falling; see `difference` for their accuracy.
        inside: energy in the base's leading subspaces of `rank`: left, right, both, in the squared units of D.
        rank: size of those subspaces; 0 where the base is zero.
    """

    values: Float[Tensor, " short"]
    inside: tuple[float, float, float]
    rank: int


@dataclass(frozen=True)
class Products:
    """What a pass over a pair leaves of D, of the tall view.

    Attributes:
        square: [short, short], lower triangle of ``D^T D``; float32 where `quick` allows it, else float64.
        cross: float32 [short, short], ``D^T W0``.
    """

    square: Float[Tensor, "short short"]
    cross: Float[Tensor, "short short"]


def delta_of(
    before: Shaped[Tensor, "out in"],
    after: Shaped[Tensor, "out in"],
    base: Factors,
    products: Products | None = None,
    *,
    holes: Bool[Tensor, "out in"] | None = None,
    device: str | torch.device = "cpu",
) -> Delta:
    """Measure the difference in one pass over the pair, or in none where another pass left the `products`.

    Args:
        before: the base, ``[out, in]``.
        after: the tuned side, same shape.
        base: factors of `before`.
        products: of this very pair.
        holes: entries of D that count as zero.
        device: where to compute.

    >>> w = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> from offprincipal.measures.spectrum import factorise
    >>> delta_of(w, 2 * w, factorise(w, 1)).inside
    (9.0, 9.0, 9.0)
    """
    rank = min(masks.principal_rank((before.shape[0], before.shape[1])), base.rank)
    lying = tall(before) is not before
    long, short = (base.right, base.left) if lying else (base.left, base.right)
    basis = short[:, :rank].cpu()
    values = None if products is None else values_of_square(products.square)
    if products is not None and values is not None:
        basis = basis.to(products.cross.dtype)  # as good as the products themselves: sums are taken in float64
        square = products.square.cpu().to(basis.dtype)
        image = (products.cross.cpu() @ basis).T / base.values[:rank, None].to(basis)
    else:
        seen: list[energy.Inside] = []

        def watch() -> Update:
            seen.append(energy.Inside(long[:, :rank].to(device), len(short)))
            return seen[-1].update

        values, square = difference(after, before, holes=holes, device=device, watch=watch)
        image = seen[-1].image.cpu()
    along = (_energy(image), energy.through_gram(square, basis))
    both = _energy(image @ basis)
    return Delta(values, (along[1], along[0], both) if lying else (*along, both), rank)


def _energy(part: Tensor) -> float:
    return float(part.square().sum(dtype=torch.float64))


def difference(
    after: Shaped[Tensor, "out in"],
    before: Shaped[Tensor, "out in"],
    *,
    holes: Bool[Tensor, "out in"] | None = None,
    device: str | torch.device = "cpu",
    watch: Callable[[], Update] | None = None,
) -> tuple[Float[Tensor, " short"], Float[Tensor, "short short"]]:
    """Singular values of ``D = after - before`` (falling) and the lower triangle of its Gram matrix, float64, CPU.

    Args:
        after: ``[out, in]``, any floating dtype.
        before: the same shape.
        holes: entries of D that count as zero.
        device: where the Gram matrix is computed.
        watch: makes a fresh receiver of the slices, as `gram` takes; called once per attempt.

    Accuracy: values above 1e-6 s_1 are told from zero, larger ones are good to 1e-6 relative or better. That is all
    that ranks, norms and bounds ask of D; `factorise` holds the stricter promise for the weights themselves. A tall
    D of 16-bit weights goes through float32 first: an error of 6e-8 s_1^2 in the squares is harmless as long as the
    least square stays above 1e-5 of the largest, and where it does not, float64 does it again.

    >>> difference(torch.eye(2) * 3, torch.eye(2))[0].tolist()
    [2.0, 2.0]
    """

    def attempt(dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        also = watch() if watch else None
        square = gram(after, before, holes=holes, device=device, also=also, dtype=dtype).cpu()
        return values_of_square(square), square.to(torch.float64)

    if quick(after, before):
        values, square = attempt(torch.float32)
        if values is not None:
            return values, square
    values, square = attempt(torch.float64)
    assert values is not None  # float64 keeps the small end
    return values, square


def quick(first: Tensor, second: Tensor) -> bool:
    """Whether the Gram matrix of the difference is tried in float32 first: tall or wide by two to one, 16 bits.

    >>> quick(torch.ones(4, 2).bfloat16(), torch.ones(4, 2).bfloat16())
    True
    """
    return max(first.shape) >= 2 * min(first.shape) and max(first.itemsize, second.itemsize) <= 2


def values_of_square(square: Float[Tensor, "short short"]) -> Float[Tensor, " short"] | None:
    """Singular values of D (falling, float64, CPU) from the lower triangle of its Gram matrix.

    None where that is in float32, which may have drowned the small end or left its range: `difference` decides then.

    >>> values_of_square(torch.diag(torch.tensor([1.0, 4.0]))).tolist()
    [2.0, 1.0]
    """
    squares = torch.linalg.eigvalsh(square.cpu().to(torch.float64)).flip(0).clamp(min=0)
    return squares.sqrt() if square.dtype == torch.float64 or _kept(squares) else None


def _kept(squares: Tensor) -> bool:
    return float(squares[-1]) > 1e-5 * float(squares[0]) and 1e-20 < float(squares[0]) < 1e30
