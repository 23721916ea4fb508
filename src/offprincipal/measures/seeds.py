"""Random streams that depend on what they are for, not on when they are drawn.

Each random step gets its own generator from a hash of the seed and of words that name the step (usually the tensor's
name). So serial, parallel, resumed and sharded runs draw the same numbers. The global generators are never touched.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def stream(seed: int, *words: str) -> int:
    """A 63-bit integer from sha256 of the seed and the words; equal inputs, equal stream.

    Hashing the pair, rather than adding an index to the seed, keeps neighbouring seeds from sharing draws.

    >>> stream(0, "layers.0.q", "gauss") == stream(0, "layers.0.q", "haar")
    False
    """
    text = "\x1f".join([str(seed), *words])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *words: str) -> np.random.Generator:
    """A numpy generator for the step that the words name.

    >>> int(numpy_generator(0, "a").integers(1000)) == int(numpy_generator(0, "a").integers(1000))
    True
    """
    return np.random.Generator(np.random.PCG64(stream(seed, *words)))


def torch_generator(seed: int, *words: str, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for the step that the words name, on the given device.

    >>> import torch
    >>> torch.equal(torch.rand(3, generator=torch_generator(0, "a")), torch.rand(3, generator=torch_generator(0, "a")))
    True
    """
    import torch

    return torch.Generator(device).manual_seed(stream(seed, *words))
