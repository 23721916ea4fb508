"""What each format leaves visible: of masters, of an Adam state, of a learning rate; and every way it is refused."""

import json
import pickle
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from offprincipal import terminal
from offprincipal.cli.forecast import forecast as command
from offprincipal.errors import InputError, UsageError
from offprincipal.forecast import _adam, forecast
from offprincipal.forecast._sizes import break_even, sizes
from offprincipal.measures import ladder
from offprincipal.measures.seeds import torch_generator
from offprincipal.survey import compare
from tests.tiny import CONFIG, save_checkpoint, tiny_weights

DELTA = 3e-5


@pytest.fixture
def base(checkpoint):
    return checkpoint("base")


@pytest.fixture
def master(checkpoint):
    return checkpoint("master", delta=DELTA, dtype=torch.float32)


def adam_state(weights, steps=3, lr=1e-4, **choices):
    """Parameters, their AdamW after some steps of made-up gradients, and what the last step added (float64)."""
    parameters = {name: torch.nn.Parameter(tensor.double()) for name, tensor in weights.items()}
    optimizer = torch.optim.AdamW(list(parameters.items()), lr=lr, weight_decay=0.0, **choices)
    for step in range(steps):
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            random = torch_generator(step, "gradient", name)
            parameter.grad = torch.randn(parameter.shape, generator=random).double()
        optimizer.step()
    return optimizer, {name: parameter.detach() - before[name] for name, parameter in parameters.items()}


def save_state(tmp_path, state, name="optimizer.pt"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def test_masters_give_the_count_of_their_rounded_checkpoints(base, master, checkpoint, tmp_path):
    """The bf16 rung is what `compare` counts on the stored checkpoint; fp32 sees nearly everything."""
    found = forecast(base, master)
    run = compare(base, [checkpoint("stored", delta=DELTA)], geometry=False).summary["runs"][0]
    row, linear = found.row("bf16"), found.row("bf16", scope="linear")
    assert (row["visible_counted"], row["weights"]) == (run["changed"], run["counted"])
    assert 1 - linear["share_counted"] == run["sparsity_bf16_linear"]
    shares = [found.row(name)["share_counted"] for name in ("fp32", "fp16", "bf16", "fp8_e4m3_scaled")]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.999
    for name in ("fp16", "bf16", "fp8_e5m2", "fp8_e4m3", "fp8_e4m3_scaled"):
        assert abs(found.row(name)["share_counted"] - found.row(name)["share_expected"]) < 0.01
    assert found.summary["base"]["dtypes"] == ["BF16"]
    assert found.summary["tuned"]["dtypes"] == ["F32"]
    assert abs(found.summary["mean_step"] / (DELTA * (2 / torch.pi) ** 0.5) - 1) < 0.05


def test_steps_and_factors_scale_the_same_update(base, master):
    found = forecast(base, master, steps=100)
    names = [update["name"] for update in found.summary["updates"]]
    assert names == ["whole update", "one of 100 steps, random walk", "one of 100 steps, drift"]
    shares = [found.row("bf16", name)["visible_counted"] for name in names]
    swept = {r["factor"]: r["visible"] for r in found.summary["sweep"] if (r["format"], r["scope"]) == ("bf16", "all")}
    assert shares == [swept[1.0], swept[0.1], swept[0.01]]
    assert list(swept.values()) == sorted(swept.values())
    for scope in ("all", "linear"):
        one = {r["format"]: r["visible"] for r in found.summary["sweep"] if (r["factor"], r["scope"]) == (1.0, scope)}
        assert one == {name: found.row(name, scope=scope)["visible_counted"] for name in one}


def test_the_curve_adds_up_to_the_rows(base, master):
    found = forecast(base, master, steps=4)
    table = found.curve.to_pylist()
    for form in ("fp16", "bf16", "fp8_e4m3"):
        own = [row for row in table if row["format"] == form and row["update"] == "whole update"]
        assert sum(row["counted"] for row in own) == found.row(form)["visible_counted"]
        assert sum(row["weights"] for row in own) == found.row(form)["weights"]
        assert abs(sum(row["expected"] for row in own) - found.row(form)["visible_expected"]) < 1e-6
    scaled = [row for row in table if row["update"] == "one of 4 steps, drift"]
    assert scaled
    assert all(row["counted"] is None for row in scaled)


def test_a_base_between_grid_points_starts_within(checkpoint, tmp_path):
    """Two masters of one run: the closed form of a start within the cell, not of one on the grid."""
    early = checkpoint("early", delta=1e-4, dtype=torch.float32)
    weights = tiny_weights(delta=1e-4, dtype=torch.float32)
    for name, tensor in weights.items():
        tensor += torch.randn(tensor.shape, generator=torch_generator(5, name)) * 3e-6
    found = forecast(early, save_checkpoint(tmp_path / "late", weights)).row("bf16")
    assert abs(found["share_counted"] / found["share_expected"] - 1) < 0.1
    on_grid = forecast(checkpoint("base"), early)
    assert abs(on_grid.row("bf16")["share_counted"] / on_grid.row("bf16")["share_expected"] - 1) < 0.05


def test_a_learning_rate_gives_what_random_signs_would(base):
    found = forecast(base, lr=2e-5, steps=16)
    names = ["one step", "one step, within a run", "16 steps, random walk", "16 steps, drift"]
    assert [update["name"] for update in found.summary["updates"]] == names
    weights, random = tiny_weights(), torch_generator(0, "signs")
    for name, size in (("one step", 2e-5), ("16 steps, drift", 3.2e-4)):
        seen = torch.zeros(len(ladder.FORMATS))
        for tensor in weights.values():
            sign = torch.randint(0, 2, tensor.shape, generator=random).double() * 2 - 1
            seen += ladder.count(tensor, tensor.double() + size * sign).code_visible.sum(1)
        for count, form in zip(seen.tolist(), ladder.FORMATS, strict=True):
            row = found.row(form.name, name)
            assert abs(count - row["visible_expected"]) < 5 * row["weights"] ** 0.5 / 2 + 1
            assert row["visible_counted"] is None
    walk, drift = (found.row("bf16", name)["share_expected"] for name in names[2:])
    assert found.row("bf16")["share_expected"] < walk < drift
    swept = [r for r in found.summary["sweep"] if (r["format"], r["factor"], r["scope"]) == ("bf16", 1.0, "all")]
    assert swept[0]["visible"] == found.row("bf16")["visible_expected"]


def test_a_tied_weight_is_counted_once(tmp_path):
    weights = tiny_weights()
    alone = sum(tensor.numel() for name, tensor in weights.items() if name != "lm_head.weight")
    base = save_checkpoint(tmp_path / "tied", weights, CONFIG | {"tie_word_embeddings": True})
    found = forecast(base, lr=1e-6)
    assert found.summary["weights"]["all"] == alone
    assert [item["tensor"] for item in found.summary["left_out"]] == ["lm_head.weight"]


@pytest.mark.parametrize("form", ["names", "strings", "safetensors", "amsgrad"])
def test_an_adam_state_gives_its_last_step(base, tmp_path, form, monkeypatch):
    weights = tiny_weights()
    optimizer, last = adam_state(weights, amsgrad=form == "amsgrad")
    state = optimizer.state_dict()
    if form == "strings":  # as torch.distributed.checkpoint gathers it
        named = dict(zip(state["param_groups"][0]["params"], weights, strict=True))
        state["state"] = {named[key]: value for key, value in state["state"].items()}
        state["param_groups"][0] |= {"params": list(weights)}
        state["param_groups"][0].pop("param_names")
    file = save_state(tmp_path, state)
    if form == "safetensors":
        file = tmp_path / "adam.safetensors"
        moments = {f"{name}.{part}": state["state"][i][part] for i, name in enumerate(weights)
                   for part in ("exp_avg", "exp_avg_sq")}  # fmt: skip
        save_file(moments, file, metadata={"lr": "1e-4", "step": "3"})
    found = forecast(base, optimizer=file, steps=9)
    seen = torch.zeros(len(ladder.FORMATS), dtype=torch.int64)
    for name, tensor in weights.items():
        seen += ladder.count(tensor, tensor.double() + last[name]).code_visible.sum(1)
    for count, form_ in zip(seen.tolist(), ladder.FORMATS, strict=True):
        assert abs(found.row(form_.name)["visible_counted"] - count) <= 2  # a step on an edge, up to rounding
    assert found.summary["lr"] == 1e-4
    names = [update["name"] for update in found.summary["updates"]]
    assert names == ["last step", "9 such steps, random walk", "9 such steps, drift"]
    assert found.summary["left_out"] == []


def test_the_learning_rate_of_a_state_can_be_replaced(base, tmp_path):
    weights = tiny_weights()
    optimizer, last = adam_state(weights, lr=1e-3)
    file = save_state(tmp_path, optimizer.state_dict())
    moments = _adam.read_moments(file, _opened(base), lr=1e-4)
    for name, tensor in last.items():
        torch.testing.assert_close(moments[name].last(), tensor / 10, rtol=1e-6, atol=1e-12)
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = 0.0
    file = save_state(tmp_path, state)
    with pytest.raises(
        InputError, match=r"its learning rate is 0, as after the end of a schedule; give one with --lr"
    ):
        forecast(base, optimizer=file)
    assert forecast(base, optimizer=file, lr=1e-4).summary["lr"] == 1e-4


def _opened(base):
    from offprincipal.checkpoint import open_checkpoint

    return open_checkpoint(base)


def numbered(weights, order):
    """A state whose parameters have numbers only, in the given order, as transformers' Trainer saves it."""
    optimizer, last = adam_state({name: weights[name] for name in order})
    state = optimizer.state_dict()
    state["param_groups"][0].pop("param_names")
    matrices = sum(weights[name].ndim > 1 for name in order)
    group = state["param_groups"][0]
    state["param_groups"] = [group | {"params": list(range(matrices))},
                             group | {"params": list(range(matrices, len(order)))}]  # fmt: skip
    return state, last


@pytest.mark.parametrize("split", [True, False])
def test_numbered_parameters_follow_the_order_of_the_model(base, tmp_path, split, monkeypatch):
    weights = tiny_weights()
    ordered = sorted(weights, reverse=True)
    monkeypatch.setattr(_adam, "_parameters", lambda *_: [(name, tuple(weights[name].shape)) for name in ordered])
    order = sorted(ordered, key=lambda name: weights[name].ndim < 2) if split else ordered
    state, last = numbered(weights, order)
    moments = _adam.read_moments(save_state(tmp_path, state), _opened(base))
    for name, tensor in last.items():
        torch.testing.assert_close(moments[name].last(), tensor, rtol=1e-6, atol=1e-12)
    short = state | {"param_groups": state["param_groups"][:1]}
    with pytest.raises(InputError, match=r"parameters do not follow the 21 of .* in order and shape; give the check"):
        forecast(base, optimizer=save_state(tmp_path, short))


@pytest.mark.slow
def test_numbered_parameters_are_named_by_transformers(base, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {key: value for key, value in CONFIG.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings))
    weights, names = tiny_weights(), [name for name, _ in model.named_parameters()]
    state, last = numbered(weights, sorted(names, key=lambda name: weights[name].ndim < 2))
    moments = _adam.read_moments(save_state(tmp_path, state), _opened(base))
    for name, tensor in last.items():
        torch.testing.assert_close(moments[name].last(), tensor, rtol=1e-6, atol=1e-12)
    (base / "config.json").write_text(json.dumps(CONFIG | {"model_type": "no-such-model"}))
    with pytest.raises(InputError, match=r"transformers makes no model of .*config\.json; give a state that names"):
        forecast(base, optimizer=tmp_path / "optimizer.pt")


def test_naming_without_transformers(base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    weights = tiny_weights()
    state, _ = numbered(weights, list(weights))
    with pytest.raises(UsageError, match=r"naming them needs transformers; pip install offprincipal\[hf\]"):
        forecast(base, optimizer=save_state(tmp_path, state))


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


STATES = [
    (pickle.dumps({"state": Evil()}), r"torch\.load\(weights_only=True\) refuses it"),
    (b"", r"torch\.load\(weights_only=True\) refuses it"),
    ([1, 2], "it is not the state_dict of a torch optimizer"),
    ({"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"params": [0]}]}, "no moments of Adam"),
    ({"w": {"exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}}, "missing or malformed .*'step'"),
    ({"w": {"exp_avg": torch.ones(2), "step": 1}}, "missing or malformed .*'exp_avg_sq'"),
    ({"w": {"exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(3), "step": 1}}, "shapes make no sense"),
    ({"w": {"exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2), "step": 0}}, "its step, learning rate.* no sense"),
    ({"w": {"exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2), "step": 1}}, "no moments fit a tensor .*'w'"),
]


@pytest.mark.parametrize(("content", "message"), STATES)
def test_states_that_are_refused(base, tmp_path, capsys, content, message):
    file = tmp_path / "optimizer.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, dict) and "state" not in content:
        torch.save({"state": content, "param_groups": [{"params": list(content), "lr": 1e-3}]}, file)
    else:
        torch.save(content, file)
    with pytest.raises(InputError, match=message):
        forecast(base, optimizer=file)
    assert capsys.readouterr().out == ""  # nothing in the file was executed


def test_what_a_state_does_not_hold_is_said(base, tmp_path):
    weights = tiny_weights()
    weights.pop("lm_head.weight")
    weights["model.norm.weight"] = torch.zeros(7)
    found = forecast(base, optimizer=save_state(tmp_path, adam_state(weights)[0].state_dict()))
    reasons = {item["tensor"]: item["reason"] for item in found.summary["left_out"]}
    assert reasons == {
        "lm_head.weight": "the optimizer state has no moments of it",
        "model.norm.weight": "its moments have another shape",
    }
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"cannot read the optimizer state .*it cannot be read"):
        forecast(base, optimizer=tmp_path / "broken.safetensors")
    with pytest.raises(InputError, match="there is no such file; check the path"):
        forecast(base, optimizer=tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({}, "nothing says what the steps are; give TUNED, --optimizer FILE, or --lr with --steps"),
        ({"tuned": "x", "lr": 1e-6}, "TUNED already says what the steps are"),
        ({"lr": 1e-6, "steps": 0}, "0 is no number of steps"),
        ({"lr": -1.0}, "-1 is no learning rate"),
        ({"lr": float("nan")}, "nan is no learning rate"),
    ],
)
def test_requests_that_make_no_sense(base, choices, message):
    with pytest.raises(UsageError, match=message):
        forecast(base, **choices)


def test_rounded_weights_are_no_masters(base, checkpoint):
    with pytest.raises(InputError, match=r"stores 21 of 21 tensors in bfloat16 .*rounded already; give its float32"):
        forecast(base, checkpoint("rl", delta=DELTA))
    with pytest.raises(UsageError, match="the forecast has no such row"):
        forecast(base, lr=1e-6).row("int4")


def test_saved_files_are_what_a_report_reads(base, master, tmp_path):
    from offprincipal.report.gates import gates
    from offprincipal.report.ladder import forecast_charts

    found = forecast(base, master, steps=10)
    found.summary["section"]["charts"] = forecast_charts(found.summary, found.curve)
    folder = found.save(tmp_path / "out")
    assert json.loads((folder / "forecast.json").read_text()) == found.summary
    assert pq.read_table(folder / "forecast.parquet").equals(found.curve)
    sections, charts, refused = gates(folder)
    assert [section.title for section in sections] == ["Gate III: what a number format leaves visible"]
    assert len(charts) == 2
    assert refused == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write into"):
        found.save(tmp_path / "file")


def test_sizes_of_a_delta_and_their_break_even_densities():
    for name, share in (("index_int32", 0.03125), ("index_u16", 0.0625)):
        assert break_even(2)[f"{name}_below_bitmask"] == share
        below, above = (sizes(10**6, 10**6 * share * f, 2) for f in (0.99, 1.01))
        assert below[name] < below["bitmask"]
        assert above[name] > above["bitmask"]
    raw = sizes(10**9, 6.2e6, 2)  # 54x at .62 % (arXiv 2605.07330)
    assert 53 < raw["dense"] / raw["index_int32"] < 55
    random = torch.rand(4_000_000, generator=torch_generator(0, "places")) < 2e-5
    gaps = torch.diff(random.nonzero().flatten(), prepend=torch.tensor([-1]))
    literal = 4 * len(gaps) + 4 * int((gaps >= 65_535).sum())
    assert abs(sizes(4_000_000, len(gaps), 2)["index_u16"] / literal - 1) < 0.1
    assert sizes(0, 0, 2)["dense"] == 0


def test_command_line(base, master, tmp_path):
    words = [sys.executable, "-m", "offprincipal", "forecast", base, master, "--steps", 10, "-o", tmp_path / "out"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for words in ("Gate III", "visible, counted", "closed form", "Unchanged share", "Bytes of one delta"):
        assert words in done.stdout
    names = ["forecast-factor.pdf", "forecast-factor.svg", "forecast-magnitude.pdf", "forecast-magnitude.svg",
             "forecast.json", "forecast.parquet"]  # fmt: skip
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == names
    summary = json.loads((tmp_path / "out" / "forecast.json").read_text())
    assert summary["command"].startswith("offprincipal forecast ")


def test_json_and_what_was_left_out(base, tmp_path):
    machine = CliRunner().invoke(command, [str(base), "--lr", "1e-6", "--json"])
    assert json.loads(machine.stdout)["kind"] == "learning rate"
    weights = tiny_weights()
    weights.pop("lm_head.weight")
    file = save_state(tmp_path, adam_state(weights)[0].state_dict())
    table = CliRunner().invoke(command, [str(base), "--optimizer", str(file)])
    assert "1 tensors or parts left out, first lm_head.weight: the optimizer state has no moments" in table.stdout


def test_without_the_extra_tables_are_written_all_the_same(base, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(terminal.notes, "print", said.append)
    monkeypatch.setitem(sys.modules, "altair", None)
    monkeypatch.delitem(sys.modules, "offprincipal.report.ladder", raising=False)
    done = CliRunner().invoke(command, [str(base), "--lr", "1e-6", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "no charts: the package 'altair' is not installed; pip install offprincipal[report]" in said
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["forecast.json", "forecast.parquet"]
