"""Parameters sharded by FSDP2: which rows this rank holds; packed state as DTensors that any number of ranks reads.

A parameter sharded by rows is a run of its flat order, so what a rank packs is a run of the whole packed vector. The
runs are as uneven as the mask; DTensor and torch.distributed.checkpoint know even ones. `spread` and `collect` move
entries between the two with one all-to-all, when state is saved or loaded, never during a step.
"""

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, Replicate, Shard

from offprincipal.errors import InputError
from offprincipal.train._region import Region


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds.

    >>> local(torch.ones(2)).shape
    torch.Size([2])
    """
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def parts(parameter: Tensor) -> tuple[tuple[int, ...], int]:
    """Flat entries of the parameter up to the end of each rank's part, and which part is held here.

    Raises:
        InputError: a DTensor that is not sharded by rows along one mesh dimension (replicas besides are fine).

    >>> parts(torch.ones(2, 3))
    ((6,), 0)
    """
    axis = _axis(parameter)
    if axis is None or not isinstance(parameter, DTensor):
        return (parameter.numel(),), 0
    ranks = parameter.device_mesh.size(axis)
    width = parameter.numel() // max(parameter.shape[0], 1)
    rows = -(-parameter.shape[0] // ranks)
    ends = tuple(min((rank + 1) * rows, parameter.shape[0]) * width for rank in range(ranks))
    return ends, parameter.device_mesh.get_local_rank(axis)


def _axis(parameter: Tensor) -> int | None:
    """The mesh dimension along which rows are sharded; None where the parameter is whole."""
    if not isinstance(parameter, DTensor):
        return None
    sharded = [i for i, placement in enumerate(parameter.placements) if type(placement) is not Replicate]
    if not sharded:
        return None
    placement = parameter.placements[sharded[0]]
    if len(sharded) > 1 or type(placement) is not Shard or placement.dim != 0:
        raise InputError(
            "mask a sharded parameter",
            f"its placements are {parameter.placements}",
            "shard rows along one mesh dimension, as fully_shard does (replicas along others are fine)",
        )
    return sharded[0]


def spread(packed: Tensor, region: Region, parameter: Tensor) -> Tensor:
    """Packed values of this rank's part to the DTensor of all of them; a whole parameter's stay as they are.

    Every rank calls it. ``[ones]`` in; a DTensor ``[total]``, sharded evenly, out.
    """
    axis = _axis(parameter)
    if axis is None or not isinstance(parameter, DTensor) or not region.total:
        return packed
    own, even = _run(region.ends, region.rank), _even(region.total, len(region.ends))
    moved = _exchange(packed, own, even, region.ends, region.rank, parameter, axis)
    placements = [Shard(0) if i == axis else Replicate() for i in range(parameter.device_mesh.ndim)]
    shape = torch.Size([region.total])
    return DTensor.from_local(moved, parameter.device_mesh, placements, run_check=False, shape=shape, stride=(1,))


def collect(value: Tensor, region: Region, parameter: Tensor) -> Tensor:
    """The inverse of `spread`; a plain tensor is the whole packed vector and is cut."""
    axis = _axis(parameter)
    if not isinstance(value, DTensor):
        return value[region.offset : region.offset + region.ones]
    if axis is None or not isinstance(parameter, DTensor):
        return value.full_tensor()
    even = _even(region.total, len(region.ends))
    own, target = _run(even, region.rank), region.ends
    return _exchange(value.to_local(), own, target, even, region.rank, parameter, axis)


def _run(ends: tuple[int, ...], rank: int) -> tuple[int, int]:
    return (ends[rank - 1] if rank else 0), ends[rank]


def _even(total: int, ranks: int) -> tuple[int, ...]:
    """Ends of the shards as DTensor cuts them."""
    size = -(-total // ranks)
    return tuple(min((rank + 1) * size, total) for rank in range(ranks))


def _exchange(
    held: Tensor,
    own: tuple[int, int],
    wanted: tuple[int, ...],
    had: tuple[int, ...],
    rank: int,
    parameter: DTensor,
    axis: int,
) -> Tensor:
    """One all-to-all from the runs that end at `had` to those that end at `wanted`."""
    mine = _run(wanted, rank)
    send = [_common(own, _run(wanted, other)) for other in range(len(wanted))]
    receive = [_common(mine, _run(had, other)) for other in range(len(had))]
    out = held.new_empty(mine[1] - mine[0])
    group = parameter.device_mesh.get_group(axis)
    distributed.all_to_all_single(out, held.contiguous(), receive, send, group=group)
    return out


def _common(left: tuple[int, int], right: tuple[int, int]) -> int:
    return max(0, min(left[1], right[1]) - max(left[0], right[0]))
