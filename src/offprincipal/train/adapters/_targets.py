"""Which modules of a checkpoint an adapter sits on, from headers: what PEFT can adapt; what is left out, and why."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from offprincipal.checkpoint import Checkpoint, Source, TensorInfo, read_whole
from offprincipal.errors import InputError, UsageError
from offprincipal.fanout import processes, usual_jobs
from offprincipal.names import Piece, canonical, family_of, locate
from offprincipal.survey import WORTH_PROCESSES

ALL = "all-linear"

_EXPERTS = (
    "transformers holds the experts of a mixture as one fused parameter, which an adapter on modules cannot reach"
)
_ROUTER = "a router chooses experts; all-linear leaves it alone"
_UNKNOWN = "nothing declares what this weight does"


@dataclass(frozen=True)
class Module:
    """A linear module of the model, as PEFT sees it: a fused projection is one module. Small and picklable.

    Attributes:
        path: in the model that transformers builds, ``model.layers.0.self_attn.q_proj``.
        source: where its weight lies.
        kinds: what the weight is; several for a fused projection.
        transposed: stored as ``[in, out]`` (GPT-2's Conv1D).
    """

    path: str
    source: Source
    kinds: tuple[str, ...]
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        first, second = self.source.info.shape
        return (second, first) if self.transposed else (first, second)

    @property
    def cost(self) -> float:
        """Work of factoring it, in no particular unit."""
        return float(self.source.info.count * min(self.shape))

    def load(self) -> Tensor:
        """The weight as ``[out, in]``, contiguous, in its stored dtype."""
        weight = read_whole(self.source)
        return weight.T.contiguous() if self.transposed else weight


def on_this_machine(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """An engine: one process per core where the work is worth their start, else this process.

    Items are tuples that begin with a `Module`. At most eight processes (as ``survey.on_this_machine``). A script that
    uses it needs ``if __name__ == "__main__"``.
    """
    work: list[Any] = list(items)
    worth = sum(item[0].cost for item in work) > WORTH_PROCESSES
    return processes(function, work, min(usual_jobs(), len(work)) if worth else 1)


@dataclass(frozen=True)
class Targets:
    """The modules that were asked for.

    Attributes:
        modules: in the order of the names.
        words: ``target_modules`` for PEFT, matching these modules and no other weight of the checkpoint.
        left_out: (stored tensor, reason) of every weight inside a block that is not adapted although it is a matrix.
    """

    modules: tuple[Module, ...]
    words: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


def choose(base: Checkpoint, target: str = ALL) -> Targets:
    """The modules of `base` that `target` names.

    Args:
        base: an opened checkpoint.
        target: ``all-linear`` (every linear module inside a block), or kinds (``q,v,down``) and module names
            (``q_proj,qkv_proj``) separated by commas.

    Raises:
        UsageError: a word that names nothing here, or one part of a fused module.
        InputError: a word that names only weights which an adapter cannot reach, or nothing to adapt at all.
    """
    found, left_out = _candidates(base)
    if target.strip() == ALL:
        chosen = found
    else:
        words = [word.strip() for word in target.split(",") if word.strip()]
        picked = {module.path for word in words for module in _named(word, found, left_out, base.ref)}
        chosen = [module for module in found if module.path in picked]
    if not chosen:
        reasons = sorted({reason for _, reason in left_out}) or ["it has no linear module inside a numbered block"]
        raise InputError(
            f"adapt {base.ref!r}", f"no module can be adapted ({reasons[0]})", "give a decoder checkpoint"
        )
    others = {_path(name, base) for name in base.tensors if name.endswith(".weight")}
    words = _words([module.path for module in chosen], others - {module.path for module in chosen})
    return Targets(tuple(chosen), words, tuple((name, reason) for name, reason in left_out if target.strip() == ALL))


def _candidates(base: Checkpoint) -> tuple[list[Module], list[tuple[str, str]]]:
    """Every linear module, and every other matrix inside a block with the reason why it is not one."""
    modules, left_out = [], []
    for name, info in base.tensors.items():
        pieces = locate(name, info.shape, base.config)
        reason = _obstacle(info, pieces)
        if reason is None:
            kinds = tuple(piece.place.kind for piece in pieces)
            modules.append(Module(_path(name, base), base.sources[name], kinds, pieces[0].cut.transposed))
        elif reason:
            left_out.append((name, reason))
    return modules, left_out


def _obstacle(info: TensorInfo, pieces: Sequence[Piece]) -> str | None:
    """None for a linear module, a reason for another matrix inside a block, an empty one for all the rest."""
    place = pieces[0].place
    if place.layer is None or len(info.shape) < 2 or not info.is_float or not info.count:
        return ""
    if len(info.shape) > 2 or place.expert is not None:
        return _EXPERTS
    if place.kind == "router":
        return _ROUTER
    if not place.linear or not info.name.endswith(".weight"):
        return _UNKNOWN if place.kind == "other" else ""
    return None


def _path(name: str, base: Checkpoint) -> str:
    """The module in the model that transformers builds: without wrappers, with the root, multimodal parts in place."""
    plain = canonical(name, family_of(base.config)).removesuffix(".weight")
    inside = "language_model." in name and plain.startswith("model.")
    return "model.language_model." + plain.removeprefix("model.") if inside else plain


def _named(word: str, modules: Sequence[Module], left_out: Iterable[tuple[str, str]], ref: str) -> list[Module]:
    """The modules that one word of the target names."""
    asked = f"adapt {ref!r} with --target {word}"
    found = [module for module in modules if module.path.endswith(f".{word}") or module.kinds == (word,)]
    if found:
        return found
    fused = [module for module in modules if word in module.kinds]
    if fused:
        name = fused[0].path.rpartition(".")[2]
        raise UsageError(
            asked, f"it is one part of the fused module {name!r}", f"PEFT adapts it whole: --target {name}"
        )
    for name, reason in left_out:
        if f".{word}." in f"{name}." or f".{word}_proj" in name:
            raise InputError(asked, f"{name!r}: {reason}", "leave it out, or train it with a mask instead")
    known = sorted({word for module in modules for word in (module.path.rpartition(".")[2], *module.kinds)})
    raise UsageError(asked, "no module is called that", f"choose {ALL} or some of {', '.join(known)}")


def _words(paths: Sequence[str], others: Iterable[str]) -> tuple[str, ...]:
    """The shortest endings that name these modules and nothing else: last word, else without the number, else all."""
    others = list(others)
    words = set()
    for path in paths:
        parts = path.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), -1)
        for ending in (parts[-1], ".".join(parts[number + 1 :]), path):
            if ending == path or not any(other.endswith(f".{ending}") for other in others):
                words.add(ending)
                break
    return tuple(sorted(words))
