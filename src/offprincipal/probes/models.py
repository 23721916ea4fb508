"""A checkpoint as a model that computes: loaded by transformers from local files, its head applied in pieces.

What it is: weights widened to one dtype, the body (token ids to hidden states) apart from the head (hidden states to
logits), so that a vocabulary of any size is met a few positions at a time. What it is not: a download (``hf download``
does that), remote code, or quantised arithmetic.
"""

import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offprincipal.checkpoint import Checkpoint, open_checkpoint
from offprincipal.errors import InputError, UsageError
from offprincipal.survey import labelled

Parameters = Mapping[str, Tensor]
"""Some parameters by name, to be used instead of a model's own."""


def need_extra() -> None:
    """Raise unless transformers is there.

    Raises:
        UsageError: the extra ``hf`` is not installed.
    """
    try:
        importlib.import_module("transformers")
    except ImportError as missing:
        found, do_next = "the package 'transformers' is not installed", "run `pip install offprincipal[hf]`"
        raise UsageError("load a model", found, do_next) from missing


def check_device(device: str) -> None:
    """Raise where torch has no such device.

    Raises:
        UsageError: an unknown word, or no GPU here.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0][:120]
        raise UsageError(f"compute on {device!r}", reason, "choose --device cpu or a device that torch sees") from None


class Model(nn.Module):
    """A causal language model in two halves. Parameters keep their names under ``module``; none requires a gradient.

    Attributes:
        module: the transformers model, in evaluation mode.
        vocabulary: how many logits the head gives.
    """

    def __init__(self, module: Any):
        super().__init__()
        self.module = module
        self.vocabulary = int(module.get_output_embeddings().weight.shape[0])
        self.longest = getattr(module.config.get_text_config(), "max_position_embeddings", None)

    @property
    def body(self) -> Any:
        """The part from token ids to hidden states; no attribute, or its parameters would have two names."""
        return getattr(self.module, self.module.base_model_prefix)

    @cached_property
    def linear_head(self) -> bool:
        """Whether logits are a linear function of hidden states: no cap, no bias. Doubling a float is exact."""
        weight = self.module.get_output_embeddings().weight
        hidden = torch.linspace(-3, 3, 2 * weight.shape[1], dtype=weight.dtype, device=weight.device).view(2, -1)
        with torch.no_grad():
            return torch.equal(self.logits(2 * hidden), 2 * self.logits(hidden))

    def weights(self) -> dict[str, Tensor]:
        """Every parameter by the name that transformers gives it, a tied one once."""
        return dict(self.module.named_parameters())

    def hidden(self, ids: Tensor, seen: Tensor, instead: Parameters | None = None) -> Tensor:
        """Hidden states [text, token, width] of right-padded ids [text, token]; `seen` is false on padding."""
        return self._run("read", instead, ids, seen)

    def logits(self, hidden: Tensor, instead: Parameters | None = None) -> Tensor:
        """Logits [position, vocabulary] of hidden states [position, width], with the model's caps and scales."""
        return self._run("predict", instead, hidden)

    def _run(self, half: str, instead: Parameters | None, *inputs: Tensor) -> Tensor:
        if instead is None:
            return self(half, *inputs)
        named = {f"module.{name}": value for name, value in instead.items()}
        return torch.func.functional_call(self, named, (half, *inputs))

    def forward(self, half: str, *inputs: Tensor) -> Tensor:
        """One half; use `hidden` and `logits`."""
        return self._read(*inputs) if half == "read" else self._predict(*inputs)

    def _read(self, ids: Tensor, seen: Tensor) -> Tensor:
        return self.body(input_ids=ids, attention_mask=seen.long(), use_cache=False).last_hidden_state

    def _predict(self, hidden: Tensor) -> Tensor:
        """The model's own forward with its body replaced by the given hidden states."""
        from transformers.modeling_outputs import BaseModelOutputWithPast

        class Given(BaseModelOutputWithPast):
            """Whatever else an architecture's body returns (router logits, cross attentions) is absent."""

            def __getattr__(self, name: str) -> None:
                if name.startswith("__"):
                    raise AttributeError(name)

        given = Given(last_hidden_state=hidden[None])  # pyright: ignore[reportArgumentType]
        self.body.forward = lambda *_, **__: given
        try:
            ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
            return self.module(input_ids=ids, use_cache=False).logits[0]
        finally:
            del self.body.forward


def open_all(
    base: str | Path, tuned: Sequence[str | Path] | Mapping[str, str | Path]
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """The base and its labelled runs by their headers, from this disk or the Hub's cache; adapters apply to the base.

    Raises:
        UsageError: transformers is not installed, no run was given, or two have one label.
        InputError: a checkpoint cannot be read.
    """
    need_extra()
    opened = open_checkpoint(base, offline=True)
    runs = labelled(tuned)
    return opened, {label: open_checkpoint(ref, base=opened, offline=True) for label, ref in runs.items()}


def load_model(
    checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32, device: str = "cpu", derivatives: bool = False
) -> Model:
    """The model of an opened checkpoint, its stored weights widened to `dtype`.

    Args:
        checkpoint: a folder, a repository in the Hub's cache, or an adapter on one of them.
        dtype: of weights and arithmetic.
        device: where it computes.
        derivatives: choose attention that forward-mode differentiation knows: eager, not what transformers prefers.

    Raises:
        InputError: there is no config.json, transformers does not know the model, weights are missing, or it does not
            fit into memory.
    """
    below = checkpoint
    if checkpoint.kind == "adapter":
        below = open_checkpoint(str(checkpoint.base_ref), offline=True)
    model = Model(_from_pretrained(below, dtype, "eager" if derivatives else None))
    if below is not checkpoint:
        _adapt(model, below, checkpoint)
    model.requires_grad_(False).eval()
    try:
        model.to(device)
    except torch.OutOfMemoryError as problem:
        raise InputError(f"load {checkpoint.ref!r}", f"it does not fit on {device}", "use --device cpu") from problem
    _check_halves(model, checkpoint.ref)
    return model


def folder_of(checkpoint: Checkpoint) -> Path:
    """Where the files of a checkpoint lie on this disk.

    Raises:
        InputError: a lone file, which has no configuration, or a repository that is not in the Hub's cache.
    """
    asked = f"load a model from {checkpoint.ref!r}"
    if checkpoint.kind == "file":
        raise InputError(asked, "a single file is not a model", "give the folder that holds config.json and tokenizer")
    if checkpoint.kind != "hub" and Path(checkpoint.ref).is_dir():
        return Path(checkpoint.ref)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository = checkpoint.ref.removeprefix("hf://").partition("@")[0]
    try:
        return Path(snapshot_download(repository, revision=checkpoint.commit, local_files_only=True))
    except LocalEntryNotFoundError:
        raise InputError(asked, "it is not in the Hub's cache", f"run `hf download {repository}` first") from None


def load_tokenizer(checkpoint: Checkpoint) -> Any | None:
    """The tokenizer beside a checkpoint (of an adapter: beside it, else beside its base); None where there is none.

    Raises:
        InputError: there is one, and it cannot be read.
    """
    from transformers import AutoTokenizer

    folder = folder_of(checkpoint)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        return load_tokenizer(open_checkpoint(str(checkpoint.base_ref), offline=True)) if checkpoint.base_ref else None
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as problem:
        found = f"transformers says: {_first_line(problem)}"
        raise InputError(f"load the tokenizer of {checkpoint.ref!r}", found, "mend or fetch its files") from problem


@contextmanager
def quiet() -> Iterator[None]:
    """Mute transformers' progress bars and remarks below an error; undone at the end."""
    from transformers.utils import logging as transformers_logging

    logger, bars = logging.getLogger("transformers"), transformers_logging.is_progress_bar_enabled()
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        transformers_logging.disable_progress_bar()
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _from_pretrained(checkpoint: Checkpoint, dtype: torch.dtype, attention: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    asked, folder = f"load a model from {checkpoint.ref!r}", folder_of(checkpoint)
    if not (folder / "config.json").is_file():
        raise InputError(asked, "there is no config.json", "give the folder of a whole model")
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation=attention, local_files_only=True, use_safetensors=True,
                trust_remote_code=False, output_loading_info=True,
            )  # fmt: skip
            module, found = loaded
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as problem:
        raise InputError(
            asked, f"transformers says: {_first_line(problem)}", "see `offprincipal inspect`"
        ) from problem
    lost = sorted({*found["missing_keys"], *(str(each) for each in found["mismatched_keys"])})
    if lost:
        what = f"{len(lost)} weights are missing or of another shape, {lost[0]} first"
        raise InputError(asked, what, "fetch or save the checkpoint again")
    return module


def _first_line(problem: BaseException) -> str:
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)[:200]


def _adapt(model: Model, below: Checkpoint, adapter: Checkpoint) -> None:
    """Put the adapted weights (float32, as `checkpoint` computes them) into the base's model."""
    own = model.module.state_dict()
    for name, source in adapter.sources.items():
        if name in below.sources and source.recipe() == below.sources[name].recipe():
            continue
        if name not in own or own[name].shape != source.info.shape:
            found = f"transformers keeps {name!r} in another layout than it is stored"
            raise InputError(f"load {adapter.ref!r}", found, "merge the adapter with PEFT and give the merged folder")
        own[name].copy_(adapter.read(name))


@torch.no_grad()
def _check_halves(model: Model, ref: str) -> None:
    """Body and head together must be the model: some architectures do more between them than `Model` knows."""
    device = next(model.parameters()).device
    ids = torch.arange(1, 5, device=device)[None] % model.vocabulary
    seen = torch.ones_like(ids, dtype=torch.bool)
    whole = model.module(input_ids=ids, use_cache=False).logits[0]
    halves = model.logits(model.hidden(ids, seen)[0])
    if not torch.allclose(whole, halves, rtol=1e-3, atol=1e-3 * float(whole.abs().max())):
        found = f"the head of {type(model.module).__name__} is not a function of the last hidden states"
        raise InputError(f"load a model from {ref!r}", found, "this architecture cannot be probed")
