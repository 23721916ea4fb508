"""Repositories on the Hub, through huggingface_hub: its cache, its tokens, its HF_* variables.

Only names, configuration files, indexes and headers are fetched when a checkpoint is opened; a shard is downloaded
when the first of its tensors is read. Imported on first use, for huggingface_hub reads its variables at import.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from offprincipal.checkpoint._header import TensorInfo, header_length, parse_header, read_header
from offprincipal.checkpoint._listing import ADAPTER_CONFIG, CONFIG, INDEX, SINGLE
from offprincipal.checkpoint._source import HUB_SCHEME
from offprincipal.errors import InputError

REF = re.compile(r"(?:hf://)?([\w][\w.-]*/[\w][\w.-]*)(?:@([\w][\w./+-]*))?", re.ASCII)
FIRST_BYTES = 100_000  # most headers are shorter, so that one request is enough (huggingface_hub asks for as many)
TIMEOUT = 10.0  # seconds without an answer
CONNECTIONS = 8
_TRANSPORT: tuple[type[Exception], ...] = (OSError, hub_errors.HfHubHTTPError.__mro__[1])
"""What a broken connection raises: huggingface_hub has changed its HTTP library twice, and its own error always
derives from that library's root."""

T = TypeVar("T")


@dataclass(frozen=True)
class Repository:
    """A listing of one commit of a repository."""

    repo: str
    commit: str
    files: tuple[str, ...]
    asked: str

    def names(self) -> Sequence[str]:
        """The files at the top, sorted."""
        return [file for file in self.files if "/" not in file]

    def has(self, file: str) -> bool:
        """Whether the commit has the file."""
        return file in self.files

    def small(self, file: str) -> bytes:
        """A configuration file or an index, through the cache."""
        return Path(_fetch(self.repo, self.commit, file, self.asked)).read_bytes()

    def headers(self, files: Iterable[str]) -> dict[str, dict[str, TensorInfo]]:
        """The tensors of each weight file: from the cache if it is there, else by range requests."""
        wanted = list(files)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return dict(zip(wanted, pool.map(self._header, wanted), strict=True))

    def _header(self, file: str) -> dict[str, TensorInfo]:
        address = f"{HUB_SCHEME}{self.repo}@{self.commit}/{file}"
        cached = huggingface_hub.try_to_load_from_cache(self.repo, file, revision=self.commit)
        if isinstance(cached, str):
            return read_header(Path(cached), self.asked, file, address)
        url = huggingface_hub.hf_hub_url(self.repo, file, revision=self.commit)

        def part(first: int, last: int) -> tuple[bytes, int]:
            return translated(lambda: _range(url, first, last, file, self.asked), self.repo, self.commit, self.asked)

        start, size = part(0, FIRST_BYTES)
        length = header_length(start[:8], size, self.asked, file)
        data = start[8 : 8 + length]
        if len(data) < length:
            data += part(8 + len(data), 8 + length - 1)[0]
        return parse_header(data, size, self.asked, file, address)


def find(repo: str, revision: str | None, asked: str) -> Repository:
    """Ask the Hub which commit a revision is and which files it has.

    One configuration file is fetched by the revision's own name, so that the cache learns which commit the name means
    and the same reference works offline later.

    Raises:
        InputError: unknown repository or revision, no access, or no answer.
    """
    found = translated(
        lambda: huggingface_hub.HfApi().model_info(repo, revision=revision, timeout=TIMEOUT), repo, revision, asked
    )
    if not found.sha:
        raise InputError(asked, "the Hub gave no commit", "try again later")
    files = sorted(sibling.rfilename for sibling in found.siblings or ())
    small = next((file for file in (INDEX, ADAPTER_CONFIG, CONFIG) if file in files), None)
    if small:
        _fetch(repo, revision, small, asked)
    return Repository(repo, found.sha, tuple(files), asked)


def find_cached(repo: str, revision: str | None, asked: str) -> Path:
    """The snapshot of a revision in the Hub's cache. Its name is the commit.

    Raises:
        InputError: it is not there.
    """
    for file in (INDEX, SINGLE, ADAPTER_CONFIG, CONFIG):
        found = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    wanted = f"{repo}@{revision}" if revision else repo
    raise InputError(
        asked, f"offline, and {wanted} is not in the Hub's cache", "go online once, or name another folder in HF_HOME"
    )


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE asks for no network."""
    return bool(constants.HF_HUB_OFFLINE)


def download(address: str) -> str:
    """The path of a shard in the Hub's cache, after downloading it if need be.

    Raises:
        InputError: it cannot be had.
    """
    repo, _, rest = address.removeprefix(HUB_SCHEME).partition("@")
    commit, _, file = rest.partition("/")
    return _fetch(repo, commit, file, f"download {file} of {repo}")


def translated(call: Callable[[], T], repo: str, revision: str | None, asked: str) -> T:
    """The result of a call to the Hub, or its failure in our words."""
    try:
        return call()
    except InputError:
        raise
    except hub_errors.GatedRepoError as problem:
        raise InputError(
            asked, f"{repo} is gated", "accept its terms on the Hub and log in (hf auth login, or HF_TOKEN)"
        ) from problem
    except hub_errors.RepositoryNotFoundError as problem:
        raise InputError(
            asked,
            f"the Hub shows no repository {repo}",
            "check the name; if it is private, log in (hf auth login, or HF_TOKEN)",
        ) from problem
    except hub_errors.RevisionNotFoundError as problem:
        raise InputError(asked, f"{repo} has no revision {revision!r}", "check the branch, tag or commit") from problem
    except hub_errors.LocalEntryNotFoundError as problem:
        raise _unreachable(asked, problem.__cause__ or problem) from problem
    except hub_errors.EntryNotFoundError as problem:
        raise InputError(asked, f"{repo} lacks a file that it names", "try another revision") from problem
    except hub_errors.HFValidationError as problem:
        raise InputError(
            asked, f"{repo!r} is no name of a repository", "give org/name or org/name@revision"
        ) from problem
    except hub_errors.HfHubHTTPError as problem:
        raise _refused(asked, repo, problem) from problem
    except _TRANSPORT as problem:
        raise _unreachable(asked, problem) from problem
    except (ValueError, KeyError, TypeError) as problem:  # a page that is not the Hub's, a proxy's for example
        raise InputError(
            asked, f"the answer of {constants.ENDPOINT} is not the Hub's", "check HF_ENDPOINT and your proxy"
        ) from problem


def _refused(asked: str, repo: str, problem: Any) -> InputError:
    """An answer of the Hub that is an error."""
    status = getattr(problem.response, "status_code", None)
    if status in (401, 403):
        return InputError(
            asked, f"the Hub refused access to {repo} ({status})", "log in (hf auth login, or a valid HF_TOKEN)"
        )
    return InputError(asked, f"the Hub answered with status {status}", "try again later")


def _unreachable(asked: str, problem: BaseException) -> InputError:
    """No answer, or one that broke off."""
    words = f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
    return InputError(
        asked,
        f"the connection to {constants.ENDPOINT} failed ({words})",
        "check the network and HF_ENDPOINT and run it again, or use --offline if it is in the cache",
    )


def _fetch(repo: str, revision: str | None, file: str, asked: str) -> str:
    """A file of a revision through the Hub's cache; huggingface_hub itself resumes a broken download."""
    return translated(lambda: huggingface_hub.hf_hub_download(repo, file, revision=revision), repo, revision, asked)


def _range(url: str, first: int, last: int, file: str, asked: str) -> tuple[bytes, int]:
    """Bytes ``first`` to ``last`` (inclusive, or to the end of the file) and the size of the file."""
    headers = {**build_hf_headers(), "Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
    response = http_backoff("GET", url, headers=headers, timeout=TIMEOUT, max_retries=2, base_wait_time=0.5)
    if response.status_code == 416:  # an empty file has no byte that could be asked for
        return b"", 0
    hf_raise_for_status(response)
    total = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if response.status_code != 206 or not total:
        raise InputError(
            asked,
            f"the server does not answer range requests for {file}",
            "download the repository and give its folder",
        )
    size = int(total[1])
    if len(response.content) != min(last + 1, size) - first:
        raise InputError(asked, f"the connection broke off within the header of {file}", "run it again")
    return response.content, size
