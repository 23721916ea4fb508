"""What a method promises holds at every step: off the subspaces, or as the method's original form moves."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from offprincipal.errors import CheckFailed, InputError, UsageError
from offprincipal.train.adapters import hold, hold_callback, init_adapter
from offprincipal.train.adapters._hold import OffSubspaces

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

TOKENS = torch.arange(40).reshape(4, 10)
K = 4


def load(base: Path, dtype: torch.dtype = torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)


def trainable(base: Path, folder: Path):
    return peft.PeftModel.from_pretrained(load(base), str(folder), is_trainable=True)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 4, accumulate: int = 1) -> None:
    for step in range(count):
        for part in range(accumulate):
            rows = TOKENS.roll(step, 1)[part::accumulate]
            (model(rows, labels=rows).loss / accumulate).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def deltas(model: nn.Module) -> dict[str, Tensor]:
    """D of every module, float64."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            a, b = module.lora_A["default"].weight.double(), module.lora_B["default"].weight.double()
            found[name] = (b @ a * module.scaling["default"]).detach()
    return found


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_d_stays_off_both_principal_subspaces_at_every_step(checkpoint, tmp_path, kind) -> None:
    base = checkpoint("base")
    init_adapter(base, tmp_path / "a", method="off-principal", rank=3, k=K)
    model = trainable(base, tmp_path / "a")
    optimizer = OPTIMIZERS[kind](model.parameters())
    held = hold(model, tmp_path / "a").attach(optimizer)
    for _ in range(5):
        steps(model, optimizer, 1, accumulate=2)
        for name, delta in deltas(model).items():
            weight = model.get_submodule(name).get_base_layer().weight.double()
            u, _, vh = torch.linalg.svd(weight, full_matrices=False)
            size = float(delta.norm())
            assert size > 0
            assert float((u[:, :K].T @ delta).norm()) < 1e-5 * size
            assert float((delta @ vh[:K].T).norm()) < 1e-5 * size
    assert held.check() < 1e-5


def test_without_the_hook_the_promise_breaks_and_check_says_where(checkpoint, tmp_path) -> None:
    """The control."""
    base = checkpoint("base")
    init_adapter(base, tmp_path / "a", method="off-principal", rank=3, k=K)
    model = trainable(base, tmp_path / "a")
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    held = hold(model, tmp_path / "a")
    steps(model, optimizer)
    with pytest.raises(
        CheckFailed, match=r"layers.0.self_attn.q_proj is 0\.\d+ away from what it promises.*from the first"
    ):
        held.check()
    with pytest.raises(CheckFailed, match="hold the off-principal adapter"):
        held.attach(optimizer)
    held.apply()
    assert held.check() < 1e-5


def original_form(base: Path, folder: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """The literal twin: the base replaced by W - s B0 A0, A0 and B0 trained, as the papers write it."""
    model = load(base).double()
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config).double()
    stored = load_file(folder / "adapter_model.safetensors")
    before = {}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            a0, b0 = stored[f"{name}.lora_A.weight"][:3].double(), stored[f"{name}.lora_B.weight"][:, 3:].double()
            before[name] = 2.0 * b0 @ a0
            with torch.no_grad():
                module.get_base_layer().weight -= 2.0 * b0 @ a0
                module.lora_A["default"].weight.copy_(a0)
                module.lora_B["default"].weight.copy_(b0)
    return model, before


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("method", ["pissa", "milora", "geora"])
def test_it_moves_as_the_original_form_does(checkpoint, tmp_path, method, kind) -> None:
    """Same D as training the changed base, step for step, in float64: without weight decay the two forms are one."""
    base = checkpoint("base")
    init_adapter(base, tmp_path / "a", method=method, rank=3, alpha=6.0)
    optimizers = {
        "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, eps=1e-6, weight_decay=0.0),
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    }
    ours = trainable(base, tmp_path / "a").double()
    optimizer = optimizers[kind](ours.parameters())
    held = hold(ours, tmp_path / "a").attach(optimizer)
    twin, before = original_form(base, tmp_path / "a")
    steps(ours, optimizer, accumulate=2)
    steps(twin, optimizers[kind](twin.parameters()), accumulate=2)
    assert held.check() == 0.0
    expected = {name: delta - before[name] for name, delta in deltas(twin).items()}
    for name, delta in deltas(ours).items():
        assert float((delta - expected[name]).norm()) < 1e-5 * float(expected[name].norm()), name


def test_the_gradient_norm_is_that_of_the_original_form(checkpoint, tmp_path) -> None:
    base = checkpoint("base")
    init_adapter(base, tmp_path / "a", method="pissa", rank=3, alpha=6.0)
    ours, (twin, _) = trainable(base, tmp_path / "a").double(), original_form(base, tmp_path / "a")
    hold(ours, tmp_path / "a").attach(torch.optim.SGD(ours.parameters(), lr=0.1))
    norms = []
    for model in (ours, twin):
        model(TOKENS, labels=TOKENS).loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1e9)))
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


def test_weight_decay_does_not_touch_what_is_frozen_and_a_reloaded_adapter_goes_on(checkpoint, tmp_path) -> None:
    base = checkpoint("base")
    init_adapter(base, tmp_path / "a", method="geora", rank=3)
    model = trainable(base, tmp_path / "a")
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    hold(model, tmp_path / "a").attach(optimizer)
    steps(model, optimizer)
    model.save_pretrained(tmp_path / "later")
    first, later = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("a", "later"))
    for name, tensor in later.items():
        if "lora_B" in name:
            assert torch.equal(tensor[:, 3:], first[name][:, 3:])
            assert not torch.equal(tensor[:, :3], first[name][:, :3])
        else:
            assert torch.equal(tensor[:3], first[name][:3] + tensor[3:])
    again = trainable(base, tmp_path / "later")
    assert hold(again, tmp_path / "a").attach(OPTIMIZERS["adamw"](again.parameters())).check() == 0.0


@pytest.mark.parametrize("method", ["lora", "rlpo", "rlmo"])
def test_other_methods_promise_nothing(checkpoint, tmp_path, method) -> None:
    base = checkpoint("base")
    init_adapter(base, tmp_path / "a", method=method, rank=3)
    model = trainable(base, tmp_path / "a")
    held = hold(model, tmp_path / "a").attach(torch.optim.SGD(model.parameters(), lr=0.1))
    assert (held.rules, held.residuals(), held.check()) == ({}, {}, 0.0)


def test_detached_hooks_are_gone(checkpoint, tmp_path) -> None:
    base = checkpoint("base")
    init_adapter(base, tmp_path / "a", method="pissa", rank=3)
    model = trainable(base, tmp_path / "a")
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    held = hold(model, tmp_path / "a").attach(optimizer).attach(optimizer)  # attaching twice hooks once
    assert len(optimizer._optimizer_step_post_hooks) == 1
    held.detach()
    assert len(optimizer._optimizer_step_post_hooks) == 0
    steps(model, optimizer)
    with pytest.raises(CheckFailed, match="hold the pissa adapter"):
        held.check()


def test_the_callback_unwraps_the_optimizer_and_checks_at_the_end(checkpoint, tmp_path) -> None:
    base = checkpoint("base")
    init_adapter(base, tmp_path / "a", method="off-principal", rank=3, k=K)
    model = trainable(base, tmp_path / "a")
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    callback = hold_callback(tmp_path / "a")
    callback.on_train_begin(None, None, None, model=model, optimizer=SimpleNamespace(optimizer=optimizer))
    steps(model, optimizer)
    callback.on_train_end(None, None, None)
    assert len(optimizer._optimizer_step_post_hooks) == 0
    callback = hold_callback(tmp_path / "a")
    callback.on_train_begin(None, None, None, model=model, optimizer=optimizer)
    with torch.no_grad():
        callback.held.rules["model.layers.0.mlp.up_proj"].b.add_(1.0)
    with pytest.raises(CheckFailed, match=r"layers.0.mlp.up_proj is"):
        callback.on_train_end(None, None, None)


def test_a_parameter_that_is_not_a_number_fails_the_check() -> None:
    a, b = nn.Parameter(torch.ones(1, 2)), nn.Parameter(torch.full((2, 1), float("nan")))
    rule = OffSubspaces(a, b, torch.eye(2)[:, :1], torch.eye(2)[:, :1])
    assert not rule.residual() <= 1.0


def test_what_does_not_belong_together_is_refused(checkpoint, tmp_path) -> None:
    base = checkpoint("base")
    init_adapter(base, tmp_path / "a", method="off-principal", rank=3, k=K)
    init_adapter(base, tmp_path / "other", method="lora", rank=3, target="q")
    init_adapter(base, tmp_path / "wide", method="lora", rank=5)
    model = trainable(base, tmp_path / "a")
    with pytest.raises(
        UsageError, match=r"the folder has not the adapted module 'model.layers.0.mlp.down_proj' \(12 dif"
    ):
        hold(model, tmp_path / "other")
    with pytest.raises(UsageError, match=r"the model has not the adapted module"):
        hold(trainable(base, tmp_path / "other"), tmp_path / "a")
    with pytest.raises(UsageError, match=r"'model.layers.0.self_attn.q_proj' has rank 3, the folder 5"):
        hold(model, tmp_path / "wide")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"]
    layer.weight.device_mesh = "a mesh"
    with pytest.raises(UsageError, match=r"'model.layers.0.self_attn.q_proj' is sharded; shard the base only"):
        hold(model, tmp_path / "a")
    del layer.weight.device_mesh
    (tmp_path / "a" / "offprincipal_subspaces.safetensors").unlink()
    with pytest.raises(InputError, match=r"offprincipal_subspaces.safetensors is missing; run adapter init again"):
        hold(model, tmp_path / "a")
    (tmp_path / "a" / "offprincipal.json").unlink()
    with pytest.raises(InputError, match=r"there is no offprincipal.json in it"):
        hold(model, tmp_path / "a")
