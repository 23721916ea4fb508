"""The part of a list of work that one of N independent jobs does."""

import heapq
from collections.abc import Iterable
from typing import TypeVar

from offprincipal.errors import UsageError
from offprincipal.fanout._attempt import name_of

Item = TypeVar("Item")


def shard(items: Iterable[tuple[Item, float]], shards: int, index: int) -> list[Item]:
    """The items of shard `index` of `shards`, largest first.

    Every item goes, largest first, to the shard that has the least work so far; equal costs go by name. So the parts
    are disjoint, together everything, the same in every job, whatever the order of the items, and the largest load is
    at most 4/3 of the best possible (Graham 1969).

    Args:
        items: items with their costs, in any one unit.
        shards: how many jobs there are.
        index: which of them this is, from 0.

    Raises:
        UsageError: no shards, or an index outside them.

    >>> work = [("a", 5.0), ("b", 4.0), ("c", 3.0), ("d", 2.0)]
    >>> shard(work, 2, 0), shard(work, 2, 1)
    (['a', 'd'], ['b', 'c'])
    """
    if shards < 1 or not 0 <= index < shards:
        found = f"shard {index} of {shards} was asked for"
        raise UsageError(
            "split the work", found, "give --num-shards N of at least 1 and --shard-index from 0 to N - 1"
        )
    return deal(items, shards)[index]


def deal(items: Iterable[tuple[Item, float]], shards: int) -> list[list[Item]]:
    """Every part of `shard`, in order of their indices.

    >>> deal([("a", 5.0), ("b", 4.0), ("c", 3.0), ("d", 2.0)], 2)
    [['a', 'd'], ['b', 'c']]
    """
    parts: list[list[Item]] = [[] for _ in range(shards)]
    loads = [(0.0, number) for number in range(shards)]
    for item, cost in sorted(items, key=lambda pair: (-pair[1], name_of(pair[0]))):
        load, number = heapq.heappop(loads)
        heapq.heappush(loads, (load + cost, number))
        parts[number].append(item)
    return parts
