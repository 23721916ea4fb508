"""Two ranks with FSDP2 do what one process does, bit for bit, and read each other's state."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.train import fsdp_work as work
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

from offprincipal.errors import InputError
from offprincipal.train import _sharding

ROOT = Path(__file__).parents[2]


slow = pytest.mark.slow  # three processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where one process and then two have trained and saved."""
    folder = tmp_path_factory.mktemp("fsdp")
    for kind in work.OPTIONS:
        model, optimizer = work.build(kind)
        work.train(model, optimizer, range(2))
        work.save(model, optimizer, folder / f"{kind}-from-one")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.train.fsdp_work"]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(folder)], env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said[0] + said[1]
    return folder


def same(left: dict, right: dict) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


@slow
@pytest.mark.parametrize("kind", work.OPTIONS)
def test_two_ranks_equal_one_process_bit_for_bit(folder, kind):
    first, second = (torch.load(folder / f"{kind}-{rank}.pt") for rank in (0, 1))
    assert same(first["four"], second["four"])
    model, optimizer = work.build(kind)
    work.train(model, optimizer, range(2))
    assert same(first["two"], work.weights(model))
    work.train(model, optimizer, range(2, 4))
    assert same(first["four"], work.weights(model))
    assert max(first["bytes"], second["bytes"]) < optimizer.state_bytes()


@slow
@pytest.mark.parametrize("kind", work.OPTIONS)
def test_two_ranks_go_on_from_what_one_process_saved(folder, kind):
    found = torch.load(folder / f"{kind}-0.pt")
    assert same(found["resumed"], found["four"])


@slow
@pytest.mark.parametrize("kind", work.OPTIONS)
def test_one_process_goes_on_from_what_two_ranks_saved(folder, kind):
    expected = torch.load(folder / f"{kind}-0.pt")["four"]
    model, optimizer = work.build(kind)
    work.load(model, optimizer, folder / f"{kind}-from-two")
    work.train(model, optimizer, range(2, 4))
    assert same(expected, work.weights(model))


@slow
@pytest.mark.parametrize("kind", work.OPTIONS)
def test_one_process_goes_on_from_a_full_state_dict(folder, kind):
    found = torch.load(folder / f"{kind}-0.pt")
    model, optimizer = work.build(kind)
    model.load_state_dict(found["two"])
    full = torch.load(folder / f"{kind}-full.pt")
    set_optimizer_state_dict(model, optimizer, full, options=StateDictOptions(full_state_dict=True))
    work.train(model, optimizer, range(2, 4))
    assert same(found["four"], work.weights(model))


@pytest.fixture
def mesh(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_columns_are_refused_and_replicas_are_whole(mesh):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    with pytest.raises(InputError, match="shard rows along one mesh dimension"):
        _sharding.parts(distribute_tensor(torch.ones(2, 2), mesh, [Shard(1)]))
    copied = torch.nn.Parameter(distribute_tensor(torch.ones(2, 2), mesh, [Replicate()]))
    assert _sharding.parts(copied) == ((4,), 0)
    optimizer = work.MaskedAdamW([copied], work.masks_for([("w", copied)], {"w": torch.eye(2).bool()}), lr=0.1)
    copied.grad = torch.ones_like(copied)
    optimizer.step()
    state = optimizer.state_dict()
    assert state["state"][0]["exp_avg"].shape == (2,)
    optimizer.load_state_dict(state)
    assert torch.equal(copied.to_local() != 1, torch.eye(2).bool())
