"""A small local stand-in for the Hub: repositories from folders, commits, range requests, redirects, and its failures.

It answers what huggingface_hub asks: ``/api/models/ORG/NAME[/revision/REV]`` and ``/ORG/NAME/resolve/REV/FILE``, with
the headers of the real one. Weight files are redirected to ``/cdn/...``, as the real Hub does.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session, disable_progress_bars

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Served:
    """One answer: what was asked, how many bytes of a file went out."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int
    sent: int


@dataclass
class Hub:
    """What the server has and how it misbehaves.

    Attributes:
        folders: ``org/name`` to the folder it serves, under one commit, called ``main`` and ``v1``.
        gated: repositories whose files and listing need accepted terms.
        private: repositories that only the token ``hf_right`` sees.
        cuts: file to the number of answers that break off half way.
        busy: file to the number of answers that are 429, try again after a second.
        ranges: whether range requests are honoured.
        status: an answer to everything, if not 0.
        portal: answer everything with the page of a hotel's network.
        served: every answer, in order.
        url: the address of the Hub.
        cdn: another host name for the same server, as the real weights are on another host.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    cuts: dict[str, int] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)
    ranges: bool = True
    status: int = 0
    portal: bool = False
    served: list[Served] = field(default_factory=list)
    url: str = ""
    cdn: str = ""

    def sent(self, file: str) -> int:
        """The bytes of one file that have gone out."""
        return sum(item.sent for item in self.served if item.path.endswith("/" + file))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr; ``served`` is the log."""

    def do_HEAD(self) -> None:
        self.route()

    def do_GET(self) -> None:
        self.route()

    def route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        name = path.rpartition("/")[2]
        if self.hub.busy.get(name, 0) > 0:
            self.hub.busy[name] -= 1
            return self.fail(429, "", "too many requests", {"Retry-After": "1"})
        if self.hub.status:
            return self.fail(self.hub.status, "", "out of order")
        if self.hub.portal:
            return self.answer(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self.listing(match[1], match[2] or "main")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(match[1], match[2], match[3])
        if match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            return self.content(self.hub.folders[match[1]] / match[2], {})
        return self.fail(404, "", "no such page")

    def allowed(self, repo: str, revision: str) -> bool:
        """Whether to go on; the refusals are those of the real Hub."""
        token = self.headers.get("Authorization")
        if repo not in self.hub.folders or (repo in self.hub.private and token != "Bearer hf_right"):
            self.fail(401 if token is None else 404, "RepoNotFound", "Repository Not Found")
        elif repo in self.hub.gated and token != "Bearer hf_right":
            self.fail(401 if token is None else 403, "GatedRepo", "Access to this repository is restricted")
        elif revision not in ("main", "v1", COMMIT):
            self.fail(404, "RevisionNotFound", "Invalid rev id")
        else:
            return True
        return False

    def listing(self, repo: str, revision: str) -> None:
        if not self.allowed(repo, revision):
            return
        folder = self.hub.folders[repo]
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        body = json.dumps({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}).encode()
        self.answer(200, body, {"Content-Type": "application/json"})

    def resolve(self, repo: str, revision: str, file: str) -> None:
        if not self.allowed(repo, revision):
            return None
        path = self.hub.folders[repo] / file
        if not path.is_file():
            return self.fail(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": COMMIT})
        etag = hashlib.sha256(path.read_bytes()).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
        if not file.endswith(".safetensors"):
            return self.content(path, headers)
        linked = {"X-Linked-Size": str(path.stat().st_size), "X-Linked-ETag": f'"{etag}"'}
        return self.answer(302, b"", {**headers, **linked, "Location": f"{self.hub.cdn}/cdn/{repo}/{file}"})

    def content(self, path: Path, headers: dict[str, str]) -> None:
        """A file, or the range of it that was asked for."""
        body, status = path.read_bytes(), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and self.hub.ranges:
            first, last = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
            if first >= len(body):
                return self.fail(416, "", "", {"Content-Range": f"bytes */{len(body)}"})
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(body)}"}
            body, status = body[first : last + 1], 206
        cut = self.command == "GET" and self.hub.cuts.get(path.name, 0) > 0
        if cut:
            self.hub.cuts[path.name] -= 1
        return self.answer(status, body, {**headers, "Accept-Ranges": "bytes"}, cut=cut)

    def fail(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        known = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self.answer(status, json.dumps({"error": message}).encode(), {**known, **(headers or {})})

    def answer(self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        """Send it; with ``cut`` half of it, then hang up."""
        # noted before the first byte goes out: the client may look at the list as soon as it has its answer
        sent = b"" if self.command == "HEAD" else body[: len(body) // 2] if cut else body
        self.hub.served.append(
            Served(
                self.command,
                unquote(urlsplit(self.path).path),
                self.headers.get("Range"),
                self.headers.get("Authorization"),
                status,
                len(sent),
            )
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(sent)
        if cut:
            self.close_connection = True


@contextmanager
def serve() -> Iterator[Hub]:
    """A running server on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.cdn = hub.url.replace("127.0.0.1", "localhost")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def taken_for_the_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running server that this process takes for the Hub, with an empty cache and no token."""
    with serve() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        close_session()  # a session remembers proxies and whether it may use the network
        disable_progress_bars()
        yield server
        close_session()
