"""Which code does a step: the compiled loops, Triton, or plain torch; all three give one parameter the same step."""

from importlib.util import find_spec

import torch
from torch import Tensor

from offprincipal.train import _cpu, _torch
from offprincipal.train._region import Region
from offprincipal.train._rules import Task


def gather(flat: Tensor, region: Region) -> Tensor:
    """The allowed entries of a flat tensor, in order, in memory of their own.

    >>> from offprincipal.train._region import whole
    >>> gather(torch.ones(2), whole(2, (2,), 0)).tolist()
    [1.0, 1.0]
    """
    found = flat.new_empty(region.ones)
    for part, packed, mask in region.chunks():
        found[packed] = flat[part] if mask is None else flat[part][mask]
    return found


def step(tasks: list[Task]) -> None:
    """Do every task in place. Weights of any strides; what is not allowed keeps its bits."""
    ready = [_flat(task) for task in tasks]
    compiled = [task for task in ready if _cpu.able(task)]
    if compiled:
        _cpu.step(compiled)
    for task in ready:
        if not _cpu.able(task):
            _elsewhere(task)
    for task, done in zip(tasks, ready, strict=True):
        if not task.weight.is_contiguous():
            task.weight.copy_(done.weight.view(task.weight.shape))
        torch.autograd.graph.increment_version(task.weight)  # compiled loops write behind autograd's back


def _elsewhere(task: Task) -> None:
    if task.weight.device.type == "cuda" and find_spec("triton"):
        from offprincipal.train import _cuda

        if _cuda.able(task):
            return _cuda.step(task)
    return _torch.step(task)


def _flat(task: Task) -> Task:
    weight, gradient = (t.detach().contiguous().view(-1) for t in (task.weight, task.gradient))
    return Task(task.rule, weight, gradient, task.region, task.moments, task.master, task.key)
