"""What lies beside the weights, from the Hub and from the base of an adapter."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from offprincipal import rewrite
from offprincipal.checkpoint import open_checkpoint
from tests.hub_server import taken_for_the_hub
from tests.tiny import save_checkpoint, tiny_weights

VALUE = "model.layers.1.self_attn.v_proj"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository org/model on a local server; its folder."""
    with taken_for_the_hub(tmp_path, monkeypatch) as server:
        folder = save_checkpoint(tmp_path / "org-model", tiny_weights())
        (folder / "tokenizer.json").write_text("{}")
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# Model\n")
        server.folders["org/model"] = folder
        yield folder


def test_a_repository_is_transformed_and_mapped_back_at_its_commit(hub, tmp_path):
    record = rewrite.permute("org/model@main", tmp_path / "moved")
    commit = record["base"]["commit"]
    assert len(commit) == 40
    card = (tmp_path / "moved" / "README.md").read_text()
    for words in ("base_model: org/model", "license: mit", f"- base: `org/model@main` at `{commit}`"):
        assert words in card
    assert (tmp_path / "moved" / "tokenizer.json").read_text() == "{}"
    rewrite.map_back(tmp_path / "moved", tmp_path / "moved", tmp_path / "back", offline=True)
    back = open_checkpoint(tmp_path / "back")
    assert all(torch.equal(back.read(name), weight) for name, weight in tiny_weights().items())
    rewrite.rotate("org/model", tmp_path / "turned", offline=True)  # from the cache, companions too
    assert (tmp_path / "turned" / "config.json").exists()


def test_an_adapter_is_merged_with_its_base(tmp_path, checkpoint):
    base = checkpoint("base")
    (base / "tokenizer.json").write_text("{}")
    folder = tmp_path / "adapter"
    folder.mkdir()
    factors = {"lora_A": torch.ones(2, 32), "lora_B": torch.full((16, 2), 0.5)}
    named = {f"base_model.model.{VALUE}.{name}.weight": factor for name, factor in factors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    rewrite.scale(base, folder, tmp_path / "out", 2.0)
    out = open_checkpoint(tmp_path / "out")
    wanted = tiny_weights()[f"{VALUE}.weight"].float() + 2.0
    torch.testing.assert_close(out.read(f"{VALUE}.weight"), wanted)
    assert (tmp_path / "out" / "tokenizer.json").exists()
