import torch

from offprincipal.measures.seeds import numpy_generator, stream, torch_generator


def test_neighbouring_seeds_and_words_share_nothing():
    streams = {stream(seed, word) for seed in range(50) for word in ("a", "b", "ab")}
    assert len(streams) == 150
    assert stream(1, "a", "b") != stream(1, "ab")


def test_generators_leave_the_global_one_alone():
    before = torch.get_rng_state()
    torch_generator(0, "x")
    numpy_generator(0, "x").normal()
    assert torch.equal(before, torch.get_rng_state())
