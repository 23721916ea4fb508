"""A closed room for other libraries' trainers: no output, no network, no trace in the global random state."""

import contextlib
import hashlib
import logging
import random
import tempfile
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from offprincipal.lab.parts import train_part

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from offprincipal.lab.progress import Progress

NOISY = ("transformers", "trl", "accelerate", "datasets", "huggingface_hub", "torch")


def stage_seed(seed: int, stage: str) -> int:
    """The 31-bit seed of one stage: the first bits of sha256 of (seed, stage).

    >>> stage_seed(0, "base") != stage_seed(0, "sft")
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed}\x1f{stage}".encode()).digest()[:4], "big") >> 1


@contextlib.contextmanager
def quiet(seed: int) -> Iterator[None]:
    """Seed the global generators, which the trainers use, and mute the libraries; undo both at the end.

    Errors pass through. Muted: the warnings named here, log records below ERROR, the progress bars of datasets and
    transformers, and TRL's usage report over the network.
    """
    import datasets
    from huggingface_hub import constants
    from transformers.utils import logging as transformers_logging

    levels = {name: logging.getLogger(name).level for name in NOISY}
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    bars = datasets.are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
    telemetry = constants.HF_HUB_DISABLE_TELEMETRY
    with warnings.catch_warnings(), torch.random.fork_rng():
        _ignore_known_warnings()
        try:
            constants.HF_HUB_DISABLE_TELEMETRY = True
            datasets.disable_progress_bars()
            transformers_logging.disable_progress_bar()
            for name in NOISY:
                logging.getLogger(name).setLevel(logging.ERROR)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002  # the trainers draw from the old global generator
            torch.manual_seed(seed)
            yield
        finally:
            constants.HF_HUB_DISABLE_TELEMETRY = telemetry
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if not bars[0]:
                datasets.enable_progress_bars()
            if bars[1]:
                transformers_logging.enable_progress_bar()
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _ignore_known_warnings() -> None:
    # TRL 1.x knows only the old name of a switch that transformers 5.2x renamed.
    warnings.filterwarnings("ignore", r".*gradient_checkpointing` is deprecated", FutureWarning)
    # Its new name is unknown to transformers below 5.2x.
    warnings.filterwarnings("ignore", r".*past_key_values` is deprecated", FutureWarning)
    # Stable enough for us: a test holds our rollouts against those of transformers.
    warnings.filterwarnings("ignore", r".*'rollout_func', which is an experimental", UserWarning)


def common_arguments(seed: int, *, cpu: bool, autocast: bool) -> dict[str, Any]:
    """The settings that all trainers share: float32 weights, AdamW without decay, nothing saved, nothing reported."""
    return {
        "seed": seed,
        "use_cpu": cpu,
        "bf16": autocast and not cpu and torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


@contextlib.contextmanager
def scratch() -> Iterator[str]:
    """A folder that the trainers insist on and leave empty."""
    with tempfile.TemporaryDirectory(prefix="offprincipal-") as folder:
        yield folder


def train(trainer: "Trainer", stage: str, progress: "Progress") -> None:
    """Run a trainer to its end, or until its time is over (`parts`), telling the progress of its steps alone."""
    from transformers import PrinterCallback, TrainerCallback

    class Tell(TrainerCallback):
        def on_train_begin(
            self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
        ) -> None:
            progress(stage, 0, state.max_steps)

        def on_step_end(
            self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
        ) -> None:
            progress(stage, state.global_step, state.max_steps)

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Tell())
    train_part(trainer, stage)
