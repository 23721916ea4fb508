"""One tensor in every run: the base is read and factored once, hashes depend on content alone."""

import torch

from offprincipal.checkpoint import open_checkpoint
from offprincipal.geometry import Base
from offprincipal.measurement import Held, content_hash, measure_tensor
from offprincipal.pairs import pair
from offprincipal.task import Settings, Task


def test_content_hash_depends_on_bytes_shape_and_dtype():
    weights = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    assert content_hash(weights) == content_hash(weights.T.contiguous().T)
    others = [weights.reshape(3, 2), weights.bfloat16(), -weights]
    assert len({content_hash(weights), *map(content_hash, others)}) == 4
    assert content_hash(torch.tensor(1.0)) != content_hash(torch.tensor([1.0]))


def test_factors_are_made_once_for_several_runs():
    made: list[int] = []

    def make() -> Base:
        made.append(1)
        return object()  # type: ignore[return-value]

    held, first, second = Held(None), torch.zeros(2, 2), torch.zeros(2, 2)
    assert held.fetch(first, make) is held.fetch(first, make)
    held.fetch(second, make)
    assert len(made) == 2


def test_a_task_measures_every_run_and_pictures_the_chosen_matrix(checkpoint):
    base = open_checkpoint(checkpoint("base"))
    runs = {
        label: pair(base, open_checkpoint(checkpoint(label, delta=scale)))
        for label, scale in (("a", 1e-5), ("b", 1e-3))
    }
    name = "model.layers.0.self_attn.o_proj.weight"
    pairs = tuple((label, next(p for p in plan.pairs if p.name == name)) for label, plan in runs.items())
    told, part = measure_tensor(Task(name, pairs, Settings(cache=False), ("a", "b"), picture=True))
    assert told == name
    assert [row["run"] for row in part["rows"]] == ["a", "b"]
    curves = {(run, curve): y for run, curve, _, y in part["curves"]}
    assert len(curves["a", "mask_update"]) == 32 * 32
    assert sum(curves["a", "mask_principal"]) == 512  # half of the matrix
    assert sum(curves["b", "mask_update"]) == part["rows"][1]["changed"]
    assert part["consensus"][0]["runs"] == 2
