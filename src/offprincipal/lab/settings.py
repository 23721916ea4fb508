"""The sizes of the laboratory: frozen settings, one object per preset, written into every ``run.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offprincipal.errors import UsageError


@dataclass(frozen=True)
class Decoder:
    """Shape of the Qwen3 decoder; the head size is fixed apart from the width, as in Qwen3."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int


@dataclass(frozen=True)
class Steps:
    """A supervised stage: `steps` steps of `batch` sequences, `learning_rate` at its peak (linear warm-up, cosine)."""

    steps: int
    batch: int
    learning_rate: float


@dataclass(frozen=True)
class Rollouts:
    """A GRPO stage: rollouts of `samples` answers to each of `prompts` problems, each used for `updates` steps.

    Every such step sees its share of the rollout; `steps` counts them all.
    """

    steps: int
    prompts: int
    samples: int
    learning_rate: float
    updates: int = 1


@dataclass(frozen=True)
class Preset:
    """Everything that decides the weights, apart from the seed and the machine.

    `corruption` is the share of pretraining answers with a wrong step; `judged_prompts` held-out problems per family
    are answered `judged_samples` times each. `device` is ``"cpu"`` or ``"auto"`` (a GPU if there is one);
    `autocast` computes in bfloat16 on a GPU, the weights being trained stay float32.
    """

    name: str
    decoder: Decoder
    pretrain: Steps
    sft: Steps
    sft_off: Steps
    rlvr: Rollouts
    corruption: float
    judged_prompts: int
    judged_samples: int
    max_new_tokens: int = 24
    device: str = "cpu"
    autocast: bool = False


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="micro",  # for tests: every stage runs, nothing is learned
            decoder=Decoder(width=32, layers=1, heads=4, kv_heads=2, head_dim=8, mlp_width=48),
            pretrain=Steps(steps=4, batch=16, learning_rate=3e-3),
            sft=Steps(steps=2, batch=8, learning_rate=1e-3),
            sft_off=Steps(steps=2, batch=8, learning_rate=1e-3),
            rlvr=Rollouts(steps=2, prompts=4, samples=4, learning_rate=1e-4),
            corruption=0.4,
            judged_prompts=4,
            judged_samples=2,
            max_new_tokens=8,
        ),
        Preset(
            name="mini",  # for tests of arms: the base is right now and then, so that rewards move something
            decoder=Decoder(width=32, layers=1, heads=4, kv_heads=2, head_dim=8, mlp_width=48),
            pretrain=Steps(steps=100, batch=64, learning_rate=1e-2),
            sft=Steps(steps=2, batch=8, learning_rate=1e-3),
            sft_off=Steps(steps=2, batch=8, learning_rate=1e-3),
            rlvr=Rollouts(steps=3, prompts=16, samples=4, learning_rate=1e-4),
            corruption=0.4,
            judged_prompts=4,
            judged_samples=2,
            max_new_tokens=12,
        ),
        Preset(
            name="tiny",  # 0.5 M parameters, two CPU cores, minutes
            decoder=Decoder(width=128, layers=3, heads=4, kv_heads=2, head_dim=32, mlp_width=320),
            pretrain=Steps(steps=300, batch=256, learning_rate=3e-3),
            sft=Steps(steps=50, batch=128, learning_rate=5e-5),
            sft_off=Steps(steps=130, batch=128, learning_rate=3e-3),
            rlvr=Rollouts(steps=60, prompts=48, samples=8, learning_rate=2.5e-5),
            corruption=0.4,
            judged_prompts=128,
            judged_samples=8,
        ),
        Preset(
            name="small",  # 38 M parameters, one GPU, meant for under twenty minutes
            decoder=Decoder(width=512, layers=12, heads=8, kv_heads=4, head_dim=64, mlp_width=1536),
            pretrain=Steps(steps=3000, batch=512, learning_rate=1e-3),
            sft=Steps(steps=200, batch=256, learning_rate=5e-5),
            sft_off=Steps(steps=300, batch=256, learning_rate=1e-3),
            rlvr=Rollouts(steps=200, prompts=64, samples=16, learning_rate=2e-6),
            corruption=0.4,
            judged_prompts=256,
            judged_samples=8,
            device="auto",
            autocast=True,
        ),
    )
}


def find_preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        UsageError: there is none.

    >>> find_preset("tiny").decoder.width
    128
    """
    if name not in PRESETS:
        found = f"there is no preset {name!r}"
        raise UsageError("run the laboratory", found, f"choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_of(written: Mapping[str, Any]) -> Preset:
    """The preset as ``lab.json`` and every ``run.json`` keep it.

    >>> import dataclasses
    >>> preset_of(dataclasses.asdict(PRESETS["tiny"])) == PRESETS["tiny"]
    True
    """
    kinds = {"decoder": Decoder, "pretrain": Steps, "sft": Steps, "sft_off": Steps, "rlvr": Rollouts}
    return Preset(**{name: kinds[name](**value) if name in kinds else value for name, value in written.items()})
