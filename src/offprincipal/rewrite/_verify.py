"""Proof that a transform preserved the function: logits of the base and of the transformed model on random tokens.

To rotate is one thing, to store the result in 16 bits another. So the float64 comparison runs on the transform before
it is rounded, and what rounding alone does is a number of its own, computed in float64 from the stored weights.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from offprincipal.checkpoint import Checkpoint
from offprincipal.errors import CheckFailed, InputError, UsageError
from offprincipal.measures.seeds import torch_generator
from offprincipal.names import flat

BOUND = 1e-10
"""Largest relative difference of logits in float64 that counts as the same function (*ours*; 1e-13 is typical)."""

SEQUENCES, LENGTH = 2, 32


class _Float64(TorchFunctionMode):
    """Models ask for float32 in norms, softmax and rotary angles; while this is on they get float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def widened(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if func is Tensor.float:
            func = Tensor.double
        return func(*map(widened, args), **{key: widened(value) for key, value in (kwargs or {}).items()})


def logits_of(folder: str, tokens: Tensor, dtype: torch.dtype, revision: str | None = None) -> Tensor:
    """Logits of a checkpoint, ``[sequences, length, vocabulary]`` in float64, computed in ``dtype`` throughout.

    Raises:
        UsageError: transformers is not installed.
        InputError: transformers cannot load the checkpoint.
    """
    try:
        import transformers
    except ImportError:
        raise UsageError("verify", "transformers is not installed", "run: pip install 'offprincipal[hf]'") from None
    wide = _Float64() if dtype == torch.float64 else contextlib.nullcontext()
    with _quiet(transformers), torch.no_grad(), wide:  # some weights are made float32 whatever the model is
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, revision=revision, dtype=dtype, attn_implementation="eager", trust_remote_code=False,
                experts_implementation="eager",  # the faster ways know no float64
            )  # fmt: skip
        except (OSError, ValueError, KeyError, RuntimeError) as problem:
            found = f"transformers cannot load {folder!r} ({str(problem).splitlines()[0][:200]})"
            raise InputError("verify", found, "leave out --verify") from problem
        return model.eval()(tokens, use_cache=False).logits.double()


def random_tokens(checkpoint: Checkpoint, seed: int) -> Tensor:
    """Token numbers drawn alike from the whole vocabulary, int64 ``[2, 32]`` (shorter where the model is).

    Raises:
        InputError: config.json does not give the size of the vocabulary.
    """
    config = flat(checkpoint.config)
    size = config.get("vocab_size")
    if not isinstance(size, int):
        raise InputError("verify", "config.json gives no vocab_size", "leave out --verify")
    longest = config.get("max_position_embeddings") or config.get("n_positions") or LENGTH
    return torch.randint(size, (SEQUENCES, min(LENGTH, longest)), generator=torch_generator(seed, "verify"))


def difference(before: Tensor, after: Tensor) -> dict[str, float]:
    """Largest difference of two sets of logits, the same over the largest logit, and the share of equal argmax.

    >>> difference(torch.tensor([[1.0, -4.0]]), torch.tensor([[1.0, -3.0]]))
    {'max_abs': 1.0, 'max_relative': 0.25, 'argmax_agreement': 1.0}
    """
    largest = (after - before).abs().max().item()
    same = (after.argmax(-1) == before.argmax(-1)).double().mean().item()
    return {"max_abs": largest, "max_relative": largest / before.abs().max().item(), "argmax_agreement": same}


def verify(base: Checkpoint, exact: Path, stored: Path, seed: int) -> dict[str, Any]:
    """Compare the base with its transform, before and after rounding.

    Args:
        base: a folder or a repository on the Hub.
        exact: the transform written in float64.
        stored: the transform as it is kept.
        seed: of the tokens.

    Returns:
        ``float64`` and ``float32``: base against the unrounded transform, in that arithmetic. ``rounding``: base
        against the stored transform, both in float64: what storing it costs. ``bfloat16``: base against the stored
        transform in bfloat16, beside ``bfloat16_arithmetic``: the base in bfloat16 against itself in float64. Each has
        the keys of `difference`; ``tokens`` says how many, ``bound`` what float64 has to keep.

    Raises:
        InputError: transformers cannot load one of them.
        UsageError: transformers is not installed, or the base is neither a folder nor on the Hub.
    """
    tokens = random_tokens(base, seed)
    name, revision = _loadable(base)
    wide = logits_of(name, tokens, torch.float64, revision)
    narrow = logits_of(name, tokens, torch.bfloat16, revision)
    single = logits_of(name, tokens, torch.float32, revision)
    return {
        "float64": difference(wide, logits_of(str(exact), tokens, torch.float64)),
        "float32": difference(single, logits_of(str(exact), tokens, torch.float32)),
        "rounding": difference(wide, logits_of(str(stored), tokens, torch.float64)),
        "bfloat16": difference(narrow, logits_of(str(stored), tokens, torch.bfloat16)),
        "bfloat16_arithmetic": difference(wide, narrow),
        "tokens": tokens.numel(),
        "bound": BOUND,
    }


def check(found: dict[str, Any], out: Path) -> None:
    """Fail if the function was not preserved.

    Raises:
        CheckFailed: the float64 difference exceeds the bound (or is NaN).
    """
    relative = found["float64"]["max_relative"]
    if not relative <= BOUND:
        raise CheckFailed(
            f"verify {str(out)!r}",
            f"logits differ by {relative:.3g} of the largest in float64, and {BOUND:g} is allowed",
            "do not use it, and report this model: its function was not preserved",
        )


def _loadable(base: Checkpoint) -> tuple[str, str | None]:
    """What transformers loads: a folder, or a repository and its commit."""
    if base.kind == "hub":
        return base.ref.removeprefix("hf://").partition("@")[0], base.commit
    if base.kind != "folder":
        raise UsageError("verify", f"{base.ref!r} is no whole model ({base.kind})", "give a folder or a Hub name")
    return base.ref, None


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' bars and notes; both are put back."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
