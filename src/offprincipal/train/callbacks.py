"""`GeometryCallback`: the gates of a run in its own log, for any trainer of transformers, TRL's among them.

What it is: `watch.Watch` called around every so many optimizer steps, its numbers given to ``Trainer.log``, so that
trackio, wandb and TensorBoard show them. What it is not: free of charge; see `EVERY`. The class is made on first use,
because it derives from transformers' (extra ``train``).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from offprincipal.errors import UsageError
from offprincipal.train.prompts import POSITIONS, Prompts
from offprincipal.train.watch import Watch

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

EVERY = 10
"""Measure every so many optimizer steps: keeps the laboratory's GRPO run within 2 % (``benchmarks/callback.py``)."""

TEXTS = 8
"""How many rows of the training data are scored where no texts are given."""


class GeometryEvents:
    """What `GeometryCallback` does: measure around every `every`-th optimizer step, the first among them, and log.

    Use it as ``trainer.add_callback(GeometryCallback(trainer))``, before ``trainer.train()``: the model that the
    trainer holds then is the base, also when the training resumes from a checkpoint.

    Args:
        trainer: the `Trainer` whose log takes the numbers, as ``geometry/<metric>/<group>`` (`Watch` lists them).
        every: measure each so many steps.
        texts: fixed texts, or rows of token ids, on which the KL is measured at every token; a prompt together with an
            answer says more than a prompt alone. By default the first 8 rows of the training data. Empty: no KL.
        positions: at most so many tokens are scored in all, the last ones of each text.
        options: of `Watch`: rank, matrices, cache, seed.

    Raises:
        UsageError: transformers is missing, the trainer's data hold no text to score, or the model cannot be read.
    """

    def __init__(
        self,
        trainer: "Trainer",
        *,
        every: int = EVERY,
        texts: Sequence[str] | Sequence[Sequence[int]] | None = None,
        positions: int = POSITIONS,
        **options: Any,
    ):
        if every < 1:
            raise UsageError("watch a training run", f"every is {every}", "measure every 1 or more steps")
        rows = _rows(trainer) if texts is None else [_tokens(trainer, text) for text in texts]
        self._trainer, self._every = trainer, every
        model: Any = trainer.model
        self.watch = Watch(model, Prompts.of(rows, positions) if rows else None, **options)

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """The trainer may have wrapped the model meanwhile."""
        self.watch.model = kwargs["model"]

    def on_pre_optimizer_step(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Keep what the step is about to change."""
        if self._due(state.global_step + 1):
            self.watch.before_step()

    def on_step_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Measure and log."""
        if self._due(state.global_step):
            self._log({f"geometry/{name}": value for name, value in self.watch.after_step().items()}, control)

    def _due(self, step: int) -> bool:
        return step == 1 or step % self._every == 0

    def _log(self, numbers: dict[str, float], control: "TrainerControl") -> None:
        """Through the plain `Trainer.log`: TRL's would also flush the averages that its next own log reports."""
        from transformers import Trainer

        should = control.should_log
        Trainer.log(self._trainer, numbers)
        control.should_log = should  # logging withdraws the request of the same step, which is the trainer's


def _rows(trainer: "Trainer") -> list[list[int]]:
    """Token ids of the first rows of the training data."""
    data: Any = trainer.train_dataset
    rows = [data[n] for n in range(min(TEXTS, len(data)))] if hasattr(data, "__getitem__") else []
    found = [_tokens(trainer, _text(row)) for row in rows]
    if not found:
        problem = "its training data cannot be looked up by row"
        raise UsageError("choose texts for the KL", problem, "give texts=[...], or texts=() for no KL")
    return found


def _text(row: Any) -> Any:
    """What of a row is scored: its token ids, or prompt and completion, or its text."""
    if isinstance(row, Mapping):
        if "input_ids" in row:
            return row["input_ids"]
        for names in (("prompt", "completion"), ("text",), ("messages",)):
            parts = [row[name] for name in names if row.get(name)]
            if parts:
                return parts[0] if len(parts) == 1 else parts[0] + parts[1]  # two strings, or two lists of messages
    problem = f"a row of the training data is {type(row).__name__} without input_ids, prompt, text or messages"
    raise UsageError("choose texts for the KL", problem, "give texts=[...], or texts=() for no KL")


def _tokens(trainer: "Trainer", text: Any) -> list[int]:
    """Token ids of a text, of messages, or of what already are token ids."""
    tokenizer: Any = trainer.processing_class
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not isinstance(text, str) and _are_numbers(text):
        return [int(number) for number in text]
    if tokenizer is None:
        raise UsageError("score texts during training", "the trainer has no tokenizer", "give processing_class=")
    if not isinstance(text, str):
        text = tokenizer.apply_chat_template(text, tokenize=False)
    return tokenizer(text).input_ids


def _are_numbers(text: Iterable[Any]) -> bool:
    return all(not isinstance(part, (str, Mapping)) for part in text)


def _callback_class() -> "type[TrainerCallback]":
    try:
        from transformers import TrainerCallback
    except ImportError as missing:
        do_next = "install the extra: pip install offprincipal[train]"
        raise UsageError("watch a training run", "transformers is not installed", do_next) from missing
    words = {"__doc__": GeometryEvents.__doc__, "__module__": __name__}
    return type("GeometryCallback", (GeometryEvents, TrainerCallback), words)


def __getattr__(name: str) -> Any:
    if name != "GeometryCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = _callback_class()
    return globals()[name]
