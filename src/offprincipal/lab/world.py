"""The small language and its model: a word-level Hugging Face tokenizer, a Qwen3 decoder, and folders to keep both."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from offprincipal.lab.settings import Decoder
from offprincipal.lab.tasks import WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"
LONGEST = 64  # tokens that a sequence may have; the longest task has 23


def make_tokenizer() -> "PreTrainedTokenizerFast":
    """A tokenizer with one token per word of the tasks; text is split at spaces and joined by them again.

    Padding is on the left, as generation needs it. There is no chat template.

    >>> tokenizer = make_tokenizer()
    >>> tokenizer.decode(tokenizer("math 3 +5 -4 =").input_ids)
    'math 3 +5 -4 ='
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate((PAD, END, UNKNOWN, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=LONGEST,
        clean_up_tokenization_spaces=False,
    )


def make_decoder(shape: Decoder, tokenizer: "PreTrainedTokenizerFast", *, seed: int) -> "Qwen3ForCausalLM":
    """An untrained Qwen3 decoder in float32, with norms on queries and keys, grouped heads and tied embeddings.

    Its weights are a function of the seed; torch's global generator is left as it was.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    vocabulary = tokenizer.get_vocab()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        initializer_range=shape.width**-0.5,  # ours: Qwen3's .02 is made for widths in the thousands
        pad_token_id=vocabulary[PAD],
        eos_token_id=vocabulary[END],
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).float()


def save_arm(model: "Qwen3ForCausalLM", tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Write float32 weights as ``folder/master/`` and, rounded to nearest even, as the bfloat16 model ``folder/``.

    The model keeps its float32 weights. Both are ordinary Hugging Face folders; the tokenizer lies in the first.
    """
    from transformers import Qwen3ForCausalLM

    model.save_pretrained(folder / "master")
    rounded = Qwen3ForCausalLM.from_pretrained(folder / "master", dtype=torch.bfloat16)
    rounded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_arm(folder: Path) -> "tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]":
    """The bfloat16 model of an arm, its weights widened to float32 without change, and the tokenizer."""
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model, PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
