"""The same step in plain torch, a bounded chunk at a time: any device, any floating dtype.

It is what runs on an accelerator without Triton and for float16 and float64, and the slow twin of the compiled loops.
"""

import torch

from offprincipal.train._rules import Task, noise, round_randomly


def step(task: Task) -> None:
    """Do one step in place, in float32, or in float64 for float64 weights.

    >>> from offprincipal.train._region import whole
    >>> from offprincipal.train._rules import SGD
    >>> weight = torch.ones(2)
    >>> step(Task(SGD(0.5, 0.0, 0.0, 0.0, False, 1.0, 1), weight, torch.ones(2), whole(2, (2,), 0), ()))
    >>> weight.tolist()
    [0.5, 0.5]
    """
    weight, master = task.weight, task.master
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    for part, packed, mask in task.region.chunks():
        here, slopes = weight[part], task.gradient[part]
        old, slopes = (here, slopes) if mask is None else (here[mask], slopes[mask])
        wider = [moment[packed].to(wide) for moment in task.moments]  # the state itself where it is as wide
        new = task.rule.apply((old if master is None else master[packed]).to(wide), slopes.to(wide), *wider)
        for moment, value in zip(task.moments, wider, strict=True):
            moment[packed] = value.to(moment.dtype)
        if master is not None:
            master[packed] = new
        if task.key is not None:
            new = round_randomly(new, noise(task.key, task.region.offset + packed.start, new.numel(), new.device))
        if mask is None:
            here.copy_(new)
        else:
            here[mask] = new.to(weight.dtype)
