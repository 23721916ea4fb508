"""verl's engine with masks: run where verl is installed, which this project's own environment is not.

verl 0.9 has no CPU platform, so the engine is not initialised here: its own optimizer configuration builds the
optimizer for a module that FSDP2 sharded over one gloo process, and its own `optimizer_step` steps it.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

from offprincipal.errors import UsageError
from offprincipal.train import verl as attachment

TWO_STEPS = """
import os, types, warnings
warnings.simplefilter("ignore")
import torch
from torch.distributed.fsdp import fully_shard
from verl.utils import fsdp_utils
from verl.workers.config import FSDPOptimizerConfig
from verl.workers.engine.base import EngineRegistry
os.environ["VERL_ENGINE_DEVICE"] = "cpu"
fsdp_utils.get_device_id = lambda: "cpu"  # clipping asks for the current accelerator
from offprincipal.lab.settings import PRESETS
from offprincipal.lab.world import make_decoder, make_tokenizer
from offprincipal.train import MaskedAdamW
from offprincipal.train import verl as attachment
from offprincipal.train.weights import assert_trained, snapshot
engine_class = EngineRegistry.get_engine_cls("language_model", "fsdp2")
assert engine_class.__name__ == "MaskedFSDPEngine" and attachment.register() is engine_class
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
model = make_decoder(PRESETS["micro"].decoder, make_tokenizer(), seed=0)
masks = {n: torch.rand(p.shape) < .5 for n, p in model.named_parameters() if "layers" in n and p.ndim == 2}
before = snapshot(model)
mesh = torch.distributed.init_device_mesh("cpu", (1,))
for layer in model.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
engine = object.__new__(engine_class)
engine.optimizer_config = FSDPOptimizerConfig(
    lr=1e-2, weight_decay=.1, total_training_steps=2, clip_grad=1.0, override_optimizer_config={"masks": masks}
)
engine.module, engine._qat_enabled = model, False
engine.optimizer = engine._build_optimizer(model)
assert isinstance(engine.optimizer, MaskedAdamW)
for step in range(2):
    ids = torch.tensor([[3, 4, 5 + step]])
    model(input_ids=ids, labels=ids).loss.backward()
    engine.optimizer_step()
    engine.optimizer.zero_grad()
print(assert_trained(model, before, lambda name: masks.get(name, False), what="its masks"))
"""


@pytest.mark.skipif(importlib.util.find_spec("verl") is None, reason="verl is not installed")
def test_two_steps_of_verls_own_engine_stay_inside_the_masks() -> None:
    modules = {"VERL_USE_EXTERNAL_MODULES": "offprincipal.train.verl_plugin", "VERL_USE_EXTERNAL_PLUGINS": "none"}
    environment = os.environ | {"VERL_ENGINE_VENDOR": "offprincipal"} | modules
    command = [sys.executable, "-c", TWO_STEPS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Trained(changed=")


def test_without_the_variable_the_plugin_leaves_verl_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERL_ENGINE_VENDOR", raising=False)
    monkeypatch.setattr(attachment, "register", lambda: pytest.fail("it registered"))
    attachment.plugin()


def test_a_missing_verl_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verl", None)
    monkeypatch.setenv("VERL_ENGINE_VENDOR", "offprincipal")
    with pytest.raises(UsageError, match=r"cannot train inside a mask with verl: verl.* is missing; install verl"):
        attachment.plugin()


def test_a_configuration_without_masks_is_refused() -> None:
    class Config:
        override_optimizer_config = None

    with pytest.raises(UsageError, match=r"names no masks; add actor_rollout_ref.actor.optim.override_optimizer_conf"):
        attachment.build_optimizer(None, Config())  # type: ignore[arg-type]
