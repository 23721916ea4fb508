"""What two ranks do in the tests of sharded masked optimizers: a module of its own, which processes can import."""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from offprincipal.train import MaskedAdamW, masks_for

OPTIONS = {"bfloat16": {"stochastic_rounding": True}, "float32": {}, "masters": {"masters": True}}


def build(kind: str, mesh=None) -> tuple[nn.Module, MaskedAdamW]:
    """A model with uneven rows (5 over 2 ranks), a single row (one rank is empty) and a tensor without a mask."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 7, bias=False), nn.Linear(7, 1))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    masks = {
        name: torch.rand(parameter.shape, generator=generator) < 0.4
        for name, parameter in model.named_parameters()
        if name != "2.bias"
    }
    masks["1.weight"][:4] = False  # nothing moves in the first rank's rows
    model.to(torch.float32 if kind == "float32" else torch.bfloat16)
    if mesh is not None:
        for layer in model:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    chosen = {"lr": 0.01, "weight_decay": 0.1, "rest": "train", **OPTIONS[kind]}
    return model, MaskedAdamW(model.parameters(), masks_for(model, masks), **chosen)


def train(model: nn.Module, optimizer: MaskedAdamW, steps: range) -> None:
    dtype = next(model.parameters()).dtype
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        batch = torch.randn(4, 6, generator=generator).to(dtype)  # the same on every rank, so the mean gradient is it
        optimizer.zero_grad()
        model(batch).float().square().mean().backward()
        optimizer.step()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
    }


def quietly(function, *args, **options) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process, as it is meant
        function(*args, **options)


def save(model: nn.Module, optimizer: MaskedAdamW, folder: Path) -> None:
    quietly(
        dcp.save,
        {"model": model.state_dict(), "optim": get_optimizer_state_dict(model, optimizer)},
        checkpoint_id=folder,
    )


def load(model: nn.Module, optimizer: MaskedAdamW, folder: Path) -> None:
    state = {"model": model.state_dict(), "optim": get_optimizer_state_dict(model, optimizer)}
    quietly(dcp.load, state, checkpoint_id=folder)
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optim"])


def ranks(rank: int, folder: Path) -> None:
    """Train two steps, save both ways; then go on from what one process saved; keep the weights of each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for kind in OPTIONS:
        model, optimizer = build(kind, mesh)
        train(model, optimizer, range(2))
        found = {"two": weights(model), "bytes": optimizer.state_bytes()}
        save(model, optimizer, folder / f"{kind}-from-two")
        full = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
        if rank == 0:
            torch.save(full, folder / f"{kind}-full.pt")
        train(model, optimizer, range(2, 4))
        found |= {"four": weights(model)}
        model, optimizer = build(kind, mesh)
        load(model, optimizer, folder / f"{kind}-from-one")
        train(model, optimizer, range(2, 4))
        found |= {"resumed": weights(model)}
        torch.save(found, folder / f"{kind}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    ranks(int(sys.argv[1]), Path(sys.argv[2]))
