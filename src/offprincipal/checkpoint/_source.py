"""Where the bytes of one tensor come from. Small and picklable, so that a worker process can read on its own."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from offprincipal.checkpoint._header import TensorInfo
from offprincipal.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

HUB_SCHEME = "hf://"


class Source(Protocol):
    """One tensor that can be read, whole or some of its rows."""

    @property
    def info(self) -> TensorInfo:
        """Name, shape and dtype of what is read."""
        ...

    def rows(self, runs: Sequence[tuple[int, int]]) -> Tensor:
        """The rows of each half-open run, one after the other, as ``[rows, columns]``."""
        ...

    def storage(self) -> Sequence[TensorInfo]:
        """Every stored tensor that a read touches."""
        ...

    def recipe(self) -> list[object]:
        """What is read and how it is put together, in words that JSON knows."""
        ...


@dataclass(frozen=True)
class Stored:
    """A tensor that lies in a safetensors file, on disk or (until first use) on the Hub.

    The bytes are read into memory of their own, never mapped: a file that shrinks under us gives an error instead of
    a killed process, and nothing stays open or mapped afterwards. Peak memory is the bytes asked for.
    """

    info: TensorInfo

    def rows(self, runs: Sequence[tuple[int, int]]) -> Tensor:
        """The rows of each half-open run of the tensor seen as ``[rows, columns]``, in the stored dtype.

        The last axis makes the columns, all axes before it the rows; a vector counts as one column.

        Raises:
            InputError: the file has gone, or is shorter than its header says.
        """
        import torch

        columns = columns_of(self.info.shape)
        width = columns * self.info.itemsize
        wanted = sum(stop - start for start, stop in runs)
        if not wanted * width:
            return torch.empty(wanted, columns, dtype=self.info.torch_dtype)
        buffer = np.empty(wanted * width, dtype=np.uint8)  # not torch.empty: numpy asks for huge pages, 1.8x as fast
        view = memoryview(buffer.data)
        asked = f"read tensor {self.info.name!r}"
        try:
            with io.FileIO(local_path(self.info.file)) as file:
                filled = 0
                for start, stop in runs:
                    size = (stop - start) * width
                    _fill(file, view[filled : filled + size], self.info.start + start * width)
                    filled += size
        except EOFError:
            raise InputError(
                asked, f"{self.info.file} is shorter than its header says", "it changed while in use: start again"
            ) from None
        except OSError as problem:
            raise InputError(
                asked,
                f"{self.info.file} cannot be read ({problem.strerror or problem})",
                "check the path and its permissions",
            ) from problem
        return torch.from_numpy(buffer).view(self.info.torch_dtype).view(wanted, columns)

    def storage(self) -> tuple[TensorInfo, ...]:
        """The one tensor itself."""
        return (self.info,)

    def recipe(self) -> list[object]:
        """Name, shape, dtype and offset: the same for the same header, wherever the file lies."""
        return [self.info.name, self.info.shape, self.info.dtype, self.info.start]


def columns_of(shape: Sequence[int]) -> int:
    """The length of the last axis; 1 for vectors and scalars.

    >>> columns_of((4, 8)), columns_of((4,)), columns_of(())
    (8, 1, 1)
    """
    return shape[-1] if len(shape) > 1 else 1


def rows_of(shape: Sequence[int]) -> int:
    """The number of rows once all axes but the last are one.

    >>> rows_of((2, 4, 8)), rows_of((4,)), rows_of(())
    (8, 4, 1)
    """
    count = 1
    for size in shape[:-1] if len(shape) > 1 else shape:
        count *= size
    return count


def read_whole(source: Source) -> Tensor:
    """The tensor in its own shape."""
    return source.rows([(0, rows_of(source.info.shape))]).view(source.info.shape)


def local_path(file: str) -> str:
    """The path on this machine; a shard on the Hub is downloaded into the Hub's own cache on first use."""
    if not file.startswith(HUB_SCHEME):
        return file
    from offprincipal.checkpoint._hub import download

    return download(file)


def _fill(file: io.FileIO, view: memoryview, offset: int) -> None:
    """Read exactly as many bytes as the view holds. One call returns at most 2 GiB on Linux, hence the loop."""
    file.seek(offset)
    done = 0
    while done < len(view):
        got = file.readinto(view[done:])
        if not got:
            raise EOFError
        done += got
