"""The page: story, charts and table put into one self-contained file that works offline."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from huggingface_hub import cached_assets_path

from offprincipal.errors import InputError, UsageError
from offprincipal.report.reading import Comparison, read
from offprincipal.store import write_file

EXTRAS = ("altair", "vl_convert", "jinja2")
FIGURE_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"


def need_extra() -> None:
    """Raise unless what draws is there.

    Raises:
        UsageError: the extra ``report`` is not installed.
    """
    for module in EXTRAS:
        try:
            importlib.import_module(module)
        except ImportError as missing:
            raise UsageError("draw a report", f"the package {module!r} is not installed",
                             "run `pip install offprincipal[report]`") from missing  # fmt: skip


def draw(directory: Path, *, figures: Path | None = None) -> Path:
    """Draw ``directory/report.html`` from the tables of a comparison, and return its path.

    The file holds its charts' code and data, makes no network request, and recolours itself for dark screens and for
    paper. With ``figures`` every chart is also written there as SVG and PDF, from the same specification.

    Raises:
        UsageError: the extra ``report`` is not installed.
        InputError: the folder is no comparison, is unfinished, or has tables of another schema version.
    """
    need_extra()
    from altair.utils.schemapi import debug_mode

    from offprincipal.report.parts import parts

    comparison = read(Path(directory))
    with debug_mode(False):  # altair checks every chart against its schema: the tests do that, at twice the time
        drawn = parts(comparison)
    out = comparison.directory / "report.html"
    write_file(out, render(comparison, drawn).encode())
    if figures is not None:
        write_figures(drawn["charts"], Path(figures))
    return out


def render(comparison: Comparison, drawn: Mapping[str, Any]) -> str:
    """The whole page as text. Every word that comes from a checkpoint is escaped, and no script but ours may run."""
    scripts = [Script.of(_bundle()), Script.of(_file("page.js") + _file("table.js"))]
    return template().render(
        **drawn["words"],
        style=_markup(_file("page.css")),
        variables=drawn["palette"],
        scripts=[{"text": _markup(s.text), "hash": s.hash} for s in scripts],
        data=_markup(embedded(_for_page(drawn))),
    )


@cache
def template() -> Any:
    """The page's template, compiled once: a tenth of a second that may be spent before there is anything to draw."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("offprincipal.report", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    for part in environment.list_templates(extensions=["j2"]):
        environment.get_template(part)  # those that the page includes too
    return environment.get_template("page.html.j2")


@dataclass(frozen=True)
class Script:
    """A script of the page with the hash by which the page's policy allows it and nothing else."""

    text: str
    hash: str

    @classmethod
    def of(cls, text: str) -> Script:
        """Close no tag from within, and hash what the browser will see."""
        safe = text.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")
        return cls(safe, base64.b64encode(hashlib.sha256(safe.encode()).digest()).decode())


def embedded(data: Any) -> str:
    r"""JSON that may stand inside a script element: nothing in it can end the element.

    >>> embedded({"name": "</script><script>"})
    '{"name":"\\u003c/script\\u003e\\u003cscript\\u003e"}'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _for_page(drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The data block: rows that several charts share are stored once."""
    shared: dict[str, Any] = {}
    charts = {}
    for name, spec in drawn["charts"].items():
        spec, hints = dict(spec), spec["usermeta"]
        if "shared" in hints:
            shared[hints["shared"]] = spec["datasets"]["rows"]
        if "shared" in hints or "closeup" in hints:  # the page fills these in itself
            spec.pop("datasets")
        spec.pop("config")
        spec.pop("$schema", None)
        charts[name] = spec
    found = drawn["closeups"]
    return {
        "charts": charts, "shared": shared, "config": drawn["config"], "labels": drawn["labels"],
        "table": drawn["table"],
        "closeups": {"axes": found.axes, "tensors": found.tensors, "default": found.default},
    }  # fmt: skip


def write_figures(
    charts: Mapping[str, Mapping[str, Any]], folder: Path, formats: Sequence[str] = ("svg", "pdf")
) -> list[Path]:
    """Write every chart as NAME.svg and NAME.pdf, in the light colours, for a paper."""
    import altair
    import vl_convert

    from offprincipal.report.palette import config, resolved

    folder.mkdir(parents=True, exist_ok=True)
    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    written = []
    for name, spec in charts.items():
        plain = resolved(dict(spec) | {"config": config(FIGURE_FONT)}) | {"background": "white"}
        if plain.get("width") == "container":
            plain["width"] = 420
        for form in formats:
            file = folder / f"{name}.{form}"
            drawn = {"svg": vl_convert.vegalite_to_svg, "pdf": vl_convert.vegalite_to_pdf}[form](
                plain, vl_version=version
            )
            file.write_bytes(drawn.encode() if isinstance(drawn, str) else drawn)
            written.append(file)
    return written


def _bundle() -> str:
    """The charts' code: bundling it takes two seconds and gives the same text every time, so it is kept."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    name = f"vega-lite-{version}-vl-convert-{metadata.version('vl-convert-python')}.js"

    def make() -> str:
        return vl_convert.javascript_bundle(vl_version=version)  # pyright: ignore[reportCallIssue]

    return kept(name, make)


def kept(name: str, make: Callable[[], str], folder: Path | None = None) -> str:
    """The text of that name, by default under huggingface_hub's assets cache, or what `make` returns, then kept.

    The first line is the hash of the rest: a file that was cut or changed is made again. A folder that cannot be
    written changes nothing.
    """
    try:
        folder = folder or cached_assets_path(library_name="offprincipal", namespace="report")
        digest, _, text = (folder / name).read_bytes().decode().partition("\n")
        if digest == hashlib.sha256(text.encode()).hexdigest():
            return text
    except (OSError, ValueError):  # none yet, or no text
        pass
    text = make()
    with suppress(OSError, InputError):
        if folder is not None:
            write_file(folder / name, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())
    return text


def _file(name: str) -> str:
    return resources.files("offprincipal.report").joinpath(name).read_text(encoding="utf-8")


def _markup(text: str) -> Any:
    import markupsafe

    return markupsafe.Markup(text)  # our own files and escaped JSON only, never a word from a checkpoint
