"""Tiny models of real architectures with a tokenizer, on disk as transformers writes them."""

import string
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from offprincipal.checkpoint import open_checkpoint
from offprincipal.probes import forms
from offprincipal.probes.models import Model, load_model, quiet

forms._load_rules()  # torch.func.hessian in the twins needs the same rules

WORDS = ["<pad>", "<end>", "<unknown>", *string.ascii_lowercase]
COMMON = {
    "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 32,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "initializer_range": 0.3,
}  # fmt: skip


def save_tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>"
    ).save_pretrained(folder)


def make_model(
    folder: Path, *, delta: float = 0.0, seed: int = 1, family: str = "qwen3", tokenizer: bool = True, **config
) -> Path:
    """A base of random weights (the same for every call with one configuration), or a tune of it."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    with warnings.catch_warnings(), quiet(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**{**COMMON, **config}))
        torch.manual_seed(seed)
        for weight in model.parameters():
            weight.data += delta * torch.randn(weight.shape)
        model.save_pretrained(folder)
    if tokenizer:
        save_tokenizer(folder)
    return folder


@pytest.fixture
def model(tmp_path) -> Callable[..., Path]:
    """Make a folder: ``model("base")``, ``model("rl", delta=1e-3)``."""
    return lambda name, **choices: make_model(tmp_path / name, **choices)


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A base and two tunes that all tests share; none changes them."""
    at = tmp_path_factory.mktemp("models")
    return {
        "base": make_model(at / "base"),
        "rl": make_model(at / "rl", delta=0.02),
        "rl2": make_model(at / "rl2", delta=0.02, seed=2),
    }


@pytest.fixture
def prompts(tmp_path) -> Path:
    """Six prompts of different lengths."""
    return write_prompts(tmp_path / "prompts.txt")


def write_prompts(file: Path) -> Path:
    file.write_text("a b c d e\nf g h\ni j k l m n o p\n\nq r\ns t u v w x\ny z a b\n")
    return file


def loaded(folder: Path, **choices) -> Model:
    return load_model(open_checkpoint(folder), **choices)
