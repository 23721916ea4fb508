"""The tokenizer and the decoder are ordinary Hugging Face objects and come back from disk as they were."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from offprincipal.lab.quiet import quiet
from offprincipal.lab.settings import PRESETS
from offprincipal.lab.tasks import break_up, make_items
from offprincipal.lab.world import END, LONGEST, UNKNOWN, load_arm, make_decoder, make_tokenizer, save_arm

SHAPE = PRESETS["micro"].decoder


def test_every_task_goes_through_the_tokenizer_and_back() -> None:
    tokenizer = make_tokenizer()
    for item in make_items(200, seed=0, split="heldout"):
        text = f"{item.prompt} {break_up(item.completion)} {END}"
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(text.split()) <= LONGEST
        assert tokenizer.unk_token_id not in ids
    assert tokenizer("poem").input_ids == [tokenizer.convert_tokens_to_ids(UNKNOWN)]


def test_the_decoder_is_qwen3_and_a_function_of_its_seed() -> None:
    tokenizer, before = make_tokenizer(), torch.random.get_rng_state()
    first, again, other = (make_decoder(SHAPE, tokenizer, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert first["model.layers.0.self_attn.q_norm.weight"].shape == (SHAPE.head_dim,)
    assert first["model.layers.0.self_attn.k_proj.weight"].shape == (SHAPE.kv_heads * SHAPE.head_dim, SHAPE.width)


def test_an_arm_is_a_bfloat16_folder_with_its_float32_master(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = make_decoder(SHAPE, tokenizer, seed=0)
    with quiet(0):
        save_arm(model, tokenizer, tmp_path / "arm")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "arm")
        assert AutoTokenizer.from_pretrained(tmp_path / "arm").get_vocab() == tokenizer.get_vocab()
        widened, _ = load_arm(tmp_path / "arm")
    assert loaded.dtype == torch.bfloat16
    stored, master = (load_file(tmp_path / name) for name in ("arm/model.safetensors", "arm/master/model.safetensors"))
    assert stored.keys() == master.keys()
    for name, weight in master.items():
        assert weight.dtype == torch.float32
        assert torch.equal(stored[name], weight.to(torch.bfloat16))
        assert torch.equal(widened.state_dict()[name], stored[name].float())
    assert json.loads((tmp_path / "arm/config.json").read_text())["dtype"] == "bfloat16"
    assert next(model.parameters()).dtype == torch.float32
