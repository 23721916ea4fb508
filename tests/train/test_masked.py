"""Masked optimizers: what may not move keeps its bits, what may moves as torch's dense optimizers move it."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from offprincipal.errors import InputError, UsageError
from offprincipal.train import MaskedAdamW, MaskedSGD, masks_for

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10, torch.float64: 2.0**-48}


def bits(tensor):
    return tensor.detach().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


def made(shape, density, dtype, seed=0):
    """A parameter, its mask, and the masks of an optimizer for it."""
    generator = torch.Generator().manual_seed(seed)
    parameter = nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
    mask = torch.rand(shape, generator=generator) < density
    mask.view(-1)[seed % mask.numel()] = True  # never empty
    return parameter, mask, masks_for([("weight", parameter)], {"weight": mask})


def quiet(kind, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return kind(*args, **options)


def gradients(shape, dtype, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator) * 0.1).to(dtype) for _ in range(steps)]


shapes = st.sampled_from([(1,), (7,), (3, 5), (8, 16), (2, 3, 4), (33, 65), (1, 1025)])
densities = st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0])


@settings(max_examples=60, deadline=None)
@given(
    shapes, densities, st.sampled_from(DTYPES), st.floats(1e-6, 0.1), st.floats(0, 0.99), st.floats(0, 0.999),
    st.floats(0, 0.5), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_adamw_is_dense_adamw_where_allowed(shape, density, dtype, lr, beta1, beta2, decay, maximize, seed):
    parameter, mask, masks = made(shape, density, dtype, seed)
    start, dense = parameter.detach().clone(), nn.Parameter(parameter.detach().clone())
    options = {"lr": lr, "betas": (beta1, beta2), "weight_decay": decay, "maximize": maximize, "eps": 1e-4}
    ours, theirs = quiet(MaskedAdamW, [parameter], masks, **options), torch.optim.AdamW([dense], fused=True, **options)
    size, steps = torch.zeros(shape, dtype=torch.float64), 3
    for gradient in gradients(shape, dtype, steps, seed):
        parameter.grad, dense.grad = gradient.clone(), gradient.clone()
        before = dense.detach().double()
        ours.step()
        theirs.step()
        size += before.abs() + 32 * (dense.detach().double() - before).abs()
    assert torch.equal(bits(parameter)[~mask], bits(start)[~mask])
    gap = (parameter.detach().double() - dense.detach().double()).abs()
    assert bool((gap <= 4 * EPS[dtype] * size + 4 * EPS[dtype] * lr)[mask].all())


@settings(max_examples=40, deadline=None)
@given(
    shapes, densities, st.sampled_from(DTYPES), st.floats(1e-6, 0.1), st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 0.2]), st.booleans(), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_sgd_is_dense_sgd_where_allowed(
    shape, density, dtype, lr, momentum, dampening, decay, nesterov, maximize, seed
):
    parameter, mask, masks = made(shape, density, dtype, seed)
    start, dense = parameter.detach().clone(), nn.Parameter(parameter.detach().clone())
    nesterov = nesterov and momentum > 0 and dampening == 0
    options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": decay}
    options |= {"nesterov": nesterov, "maximize": maximize}
    ours, theirs = quiet(MaskedSGD, [parameter], masks, **options), torch.optim.SGD([dense], foreach=False, **options)
    # not fused: torch 2.13's leaves whole vectors of 16-bit weights as they were
    for gradient in gradients(shape, dtype, 3, seed):
        parameter.grad, dense.grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
    assert torch.equal(bits(parameter)[~mask], bits(start)[~mask])
    gap = (parameter.detach().double() - dense.detach().double()).abs()
    assert bool((gap <= 16 * EPS[dtype] * (dense.detach().double().abs() + 4 * lr))[mask].all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_masters_are_a_float32_run_rounded(dtype, density):
    parameter, mask, masks = made((33, 65), density, dtype)
    dense = nn.Parameter(parameter.detach().float())
    ours = MaskedAdamW([parameter], masks, lr=1e-4, masters=True)
    theirs = torch.optim.AdamW([dense], lr=1e-4, fused=True)
    for gradient in gradients((33, 65), dtype, 5):
        parameter.grad, dense.grad = gradient, gradient.float()
        ours.step()
        theirs.step()
    master = ours.state[parameter]["master"]
    assert torch.equal(parameter.detach()[mask], master.to(dtype))
    assert torch.allclose(master, dense.detach()[mask], rtol=1e-6, atol=1e-9)


def batch_loss(model, seed):
    inputs = torch.randn(8, 12, generator=torch.Generator().manual_seed(seed))
    return model(inputs.to(next(model.parameters()).dtype)).float().square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [MaskedAdamW, MaskedSGD])
@pytest.mark.parametrize("options", [{}, {"masters": True}, {"stochastic_rounding": True}], ids=lambda o: "".join(o))
def test_off_mask_bits_stay_through_everything_a_loop_does(dtype, kind, options, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 5, bias=False)).to(dtype)
    model[0].weight.data[0, :3] = torch.tensor([-0.0, float("inf"), float("nan")])
    model[0].weight.data[0, 3] = 0.0
    masks = {name: torch.rand(p.shape) < 0.3 for name, p in model.named_parameters() if name != "0.bias"}
    masks["0.weight"][0] = False
    model[0].weight.register_hook(lambda g: torch.nan_to_num(g, nan=1.0, posinf=1.0, neginf=-1.0))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = quiet(kind, model.parameters(), masks_for(model, masks), lr=0.05, weight_decay=0.3, **options)
    for step in range(20):
        optimizer.zero_grad(set_to_none=bool(step % 2))
        for part in range(2):  # accumulated
            batch_loss(model, 2 * step + part).nan_to_num(1.0).backward()
        for p in model.parameters():
            p.grad = torch.randn(p.shape).to(dtype) if p.grad is None else p.grad.nan_to_num(1.0)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=bool(step % 3))
        if step == 10:
            torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
            optimizer = quiet(kind, model.parameters(), masks_for(model, masks), lr=0.05, weight_decay=0.3, **options)
            optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
        optimizer.step((lambda: batch_loss(model, 0)) if step % 4 == 0 else None)
    for name, parameter in model.named_parameters():
        allowed = masks.get(name, torch.zeros(parameter.shape, dtype=torch.bool))
        assert torch.equal(bits(parameter)[~allowed], bits(start[name])[~allowed]), name
        assert not allowed.any() or bool((bits(parameter) != bits(start[name]))[allowed].float().mean() > 0.5)


def test_a_closure_gives_its_loss_with_gradients():
    model = nn.Linear(12, 3)
    optimizer = MaskedAdamW(model.parameters(), masks_for(model, {"weight": torch.ones(3, 12, dtype=torch.bool)}))

    def closure():
        optimizer.zero_grad()
        loss = batch_loss(model, 0)
        loss.backward()
        return loss

    first, second = optimizer.step(closure), optimizer.step(closure)
    assert second.item() < first.item()


def test_parameters_without_a_mask_freeze_or_train():
    torch.manual_seed(0)
    model = nn.Linear(12, 3)
    twin = copy.deepcopy(model)
    masks = {"weight": torch.rand(3, 12) < 0.5}
    frozen = MaskedAdamW(model.parameters(), masks_for(model, masks), lr=0.1)
    start = model.bias.detach().clone()
    batch_loss(model, 0).backward()
    frozen.step()
    assert torch.equal(model.bias, start)
    trained = MaskedAdamW(twin.named_parameters(), masks_for(twin, masks), lr=0.1, rest="train")
    batch_loss(twin, 0).backward()
    dense = nn.Parameter(start.clone())
    dense.grad = twin.bias.grad.clone()
    torch.optim.AdamW([dense], lr=0.1).step()
    trained.step()
    assert torch.allclose(twin.bias, dense, rtol=1e-6)


def test_groups_and_schedulers_as_in_torch():
    model = nn.Linear(12, 3)
    masks = masks_for(model, {name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters()})
    groups = [
        {"params": [model.weight], "weight_decay": 0.5},
        {"params": [model.bias], "lr": 0.0, "weight_decay": 0.0},
    ]
    optimizer = MaskedAdamW(groups, masks, lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 10)
    bias = model.bias.detach().clone()
    batch_loss(model, 0).backward()
    optimizer.step()
    schedule.step()
    assert torch.equal(model.bias, bias)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert optimizer.param_groups[0]["lr"] < 0.1


def test_strided_weights_are_written_where_they_lie():
    parameter = nn.Parameter(torch.randn(6, 4).t())
    mask = torch.rand(4, 6) < 0.5
    start, optimizer = (
        parameter.detach().clone(),
        MaskedSGD([parameter], masks_for([("w", parameter)], {"w": mask}), lr=1.0),
    )
    parameter.grad = torch.ones(4, 6)
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.where(mask, start - 1, start))


def test_autograd_notices_a_step_between_forward_and_backward():
    parameter, _, masks = made((3, 5), 1.0, torch.float32)
    optimizer = MaskedSGD([parameter], masks, lr=0.1)
    loss = parameter.square().sum()
    parameter.grad = torch.ones(3, 5)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_any_number_of_threads_gives_the_same_bits():
    found = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            model = nn.ParameterList([made(shape, 0.4, torch.float32)[0] for shape in [(700, 300), (5,), (513, 511)]])
            masks = {
                str(i): torch.rand(p.shape, generator=torch.Generator().manual_seed(i)) < 0.4
                for i, p in enumerate(model)
            }
            optimizer = MaskedAdamW(model.parameters(), masks_for(model, masks), lr=0.01)
            for i, p in enumerate(model):
                p.grad = gradients(p.shape, torch.float32, 1, i)[0]
            optimizer.step()
            found.append([p.detach().clone() for p in model])
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_as_small_as_promised(dtype):
    shape, density = (512, 1024), 0.25
    parameter, mask, masks = made(shape, density, dtype)
    parameter.grad = torch.ones(shape, dtype=dtype)
    dense = torch.optim.AdamW([nn.Parameter(parameter.detach().clone())])
    dense.param_groups[0]["params"][0].grad = parameter.grad
    dense.step()
    theirs = sum(t.nbytes for t in next(iter(dense.state.values())).values())
    ours = quiet(MaskedAdamW, [parameter], masks)
    ours.step()
    share = int(mask.sum()) / mask.numel()
    assert ours.state_bytes() <= share * theirs + 2 * parameter.numel() / 8
    packed = ours.state_bytes() - sum(t.nbytes for t in ours.state[parameter].values())
    assert packed < 1.2 * parameter.numel() / 8  # bits; a bit for each entry and an int64 for each 512


def test_stochastic_rounding_is_unbiased_seeded_and_moves_what_rounding_would_lose():
    parameter, mask, masks = made((200, 200), 0.5, torch.bfloat16)
    start = parameter.detach().clone()
    ends = []
    for seed in (0, 0, 1):
        parameter.data.copy_(start)
        optimizer = MaskedSGD([parameter], masks, lr=1e-4, stochastic_rounding=True, seed=seed)
        for _ in range(50):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        ends.append(parameter.detach().clone())
    moved = (ends[0].double() - start.double())[mask]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert abs(float(moved.mean()) + 50e-4) < 4 * float(moved.std()) / len(moved) ** 0.5


def test_bfloat16_without_masters_warns_once_with_the_forecast():
    parameter = nn.Parameter(torch.tensor([1.0, 1.0, 1e-6, 1e-6]).bfloat16())
    mask = torch.tensor([True, False, True, True])
    masks = masks_for([("w", parameter)], {"w": mask})
    with pytest.warns(UserWarning, match=r"3 bfloat16 weights .* lr 1e-06 is lost to rounding in 33.3%") as found:
        optimizer = MaskedAdamW([parameter], masks, lr=1e-6)
    assert [each.filename for each in found] == [__file__]
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # says nothing again: warnings are errors here
    with pytest.warns(UserWarning, match="half the gap between neighbouring"):
        MaskedSGD([parameter], masks, lr=1e-6)
    MaskedAdamW([parameter], masks, lr=1e-6, masters=True)


def test_optimizers_survive_a_deep_copy():
    parameter, mask, masks = made((3, 5), 0.5, torch.float32)
    other, twin = copy.deepcopy([parameter, MaskedAdamW([parameter], masks, lr=0.1)])
    other.grad = torch.ones(3, 5)
    twin.step()
    assert torch.equal((other != parameter), mask)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"amsgrad": True}, "cannot build MaskedAdamW: amsgrad=True is not supported; leave amsgrad out"),
        ({"capturable": True}, "capturable=True is not supported"),
        ({"differentiable": True}, "differentiable=True is not supported"),
        ({"lr": -1.0}, "lr is -1.0; give a finite lr of at least 0"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\)"),
        ({"rest": "thaw"}, "rest is 'thaw'; choose"),
        ({"masters": True, "stochastic_rounding": True}, "both asked for; choose one"),
    ],
)
def test_options_that_are_refused(options, words):
    parameter, _, masks = made((3, 5), 0.5, torch.float32)
    with pytest.raises(UsageError, match=words):
        MaskedAdamW([parameter], masks, **options)


def test_options_that_sgd_refuses_and_takes():
    parameter, _, masks = made((3, 5), 0.5, torch.float32)
    with pytest.raises(UsageError, match="give it momentum and no dampening"):
        MaskedSGD([parameter], masks, nesterov=True)
    with pytest.raises(UsageError, match="differentiable=True"):
        MaskedSGD([parameter], masks, differentiable=True)
    MaskedSGD([parameter], masks, foreach=True, fused=True)
    MaskedAdamW([parameter], masks, foreach=True, fused=True)


def test_float16_is_not_rounded_stochastically():
    parameter, _, masks = made((3, 5), 0.5, torch.float16)
    with pytest.raises(UsageError, match="it is float16; use bfloat16 weights, or masters=True"):
        MaskedAdamW([parameter], masks, stochastic_rounding=True)


def test_a_sparse_gradient_is_refused_before_anything_moves():
    table, other = nn.Embedding(5, 3, sparse=True), nn.Parameter(torch.zeros(2))
    named = [("other", other), ("table", table.weight)]
    masks = masks_for(named, {"table": torch.ones(5, 3, dtype=torch.bool), "other": torch.ones(2, dtype=torch.bool)})
    optimizer = MaskedAdamW([other, table.weight], masks)
    table(torch.tensor([1])).sum().backward()
    other.grad = torch.ones(2)
    with pytest.raises(InputError, match="'table': its gradient is sparse; build the embedding with sparse=False"):
        optimizer.step()
    assert other.tolist() == [0.0, 0.0]


def test_a_replaced_parameter_is_not_trained_in_silence():
    parameter, _, masks = made((3, 5), 0.5, torch.float32)
    optimizer = MaskedAdamW([parameter], masks)
    optimizer.param_groups[0]["params"][0] = other = nn.Parameter(torch.zeros(3, 5))
    other.grad = torch.ones(3, 5)
    with pytest.raises(InputError, match="a parameter was replaced after the optimizer was built"):
        optimizer.step()


def test_masked_parameters_must_be_given():
    _, _, masks = made((3, 5), 0.5, torch.float32)
    with pytest.raises(InputError, match="1 masked parameters, 'weight' first, are not among those given"):
        MaskedAdamW([nn.Parameter(torch.zeros(3, 5))], masks)


def test_complex_parameters_are_refused():
    parameter, _, masks = made((3, 5), 0.5, torch.float32)
    with pytest.raises(InputError, match=r"it is torch\.complex64; train real floating-point parameters"):
        MaskedAdamW([parameter, nn.Parameter(torch.zeros(2, dtype=torch.complex64))], masks, rest="train")
