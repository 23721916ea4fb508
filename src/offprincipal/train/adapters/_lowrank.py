"""A product ``scaling B A`` measured and shortened without forming it. PURE: tensors in, tensors out, float64.

What it is: QR of both factors, then everything on the small core. What it is not: the dense D; a twin in the tests is.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Product:
    """``D = scaling B A``, float64.

    Attributes:
        a: ``[rank, in]``.
        b: ``[out, rank]``.
        scaling: of the product.
    """

    a: Float[Tensor, "rank in"]
    b: Float[Tensor, "out rank"]
    scaling: float = 1.0

    def minus(self, other: "Product") -> "Product":
        """The difference, as a product of both ranks together and scaling 1.

        >>> one = Product(torch.ones(1, 2).double(), torch.ones(2, 1).double())
        >>> one.minus(one).b.tolist()
        [[1.0, -1.0], [1.0, -1.0]]
        """
        b = torch.cat([self.scaling * self.b, -other.scaling * other.b], dim=1)
        return Product(torch.cat([self.a, other.a]), b)

    def core(self) -> Float[Tensor, "m n"]:
        """A small matrix with the singular values of D: ``scaling R_b R_a^T``. No cancellation beyond that of B A."""
        left, right = torch.linalg.qr(self.b).R, torch.linalg.qr(self.a.T).R
        return self.scaling * left @ right.T

    def norm(self) -> float:
        """``||D||_F``.

        >>> Product(torch.ones(1, 4).double(), torch.ones(1, 1).double(), 2.0).norm()
        4.0
        """
        return float(self.core().norm())

    def is_zero(self) -> bool:
        """Whether every entry of D is exactly zero: each column of B meets a zero row of A, or is zero itself.

        Sufficient, whatever the arithmetic; a D that cancels only by chance does not count.
        """
        return bool(((self.a == 0).all(dim=1) | (self.b == 0).all(dim=0)).all())

    def inside(self, left: Float[Tensor, "out k"], right: Float[Tensor, "in k"]) -> tuple[float, float]:
        """``||U^T D||^2`` and ``||D V||^2`` for orthonormal U and V; divide by ``norm() ** 2`` for the shares.

        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> Product(eye, eye).inside(eye[:, :1], eye[:, :1])
        (1.0, 1.0)
        """
        through = (
            Product(self.a, left.T @ self.b, self.scaling).norm(),
            Product(self.a @ right, self.b, self.scaling).norm(),
        )
        return through[0] ** 2, through[1] ** 2


def shorten(product: Product, rank: int) -> tuple[Product, float]:
    """The nearest product of at most `rank` (Eckart and Young), and how far it is: ``||D - D_r||_F``.

    The singular values are split evenly between the factors, and the scaling stays.

    >>> short, lost = shorten(Product(torch.diag(torch.tensor([3.0, 1.0])).double(), torch.eye(2).double()), 1)
    >>> short.a.shape[0], lost
    (1, 1.0)
    """
    left, upper = torch.linalg.qr(product.b)
    right, lower = torch.linalg.qr(product.a.T)
    u, s, vh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    root = s[:rank].sqrt()
    short = Product(root[:, None] * (vh[:rank] @ right.T), left @ u[:, :rank] * root, product.scaling)
    return short, float(s[rank:].norm()) * product.scaling
