import importlib.util
import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from offprincipal import cost
from offprincipal.checkpoint import open_checkpoint
from offprincipal.cost import ASSUMED_GPU, STAGES, Rates, Work, _rates, measure_rates, plan_cost, rates, seconds
from offprincipal.pairs import pair

ROOT = Path(__file__).parent.parent
FLAT = Rates("flat", "made up", True, gemm=1e9, vectors=1e9, values=1e9, count=1e9, hash=1e9, read=1e9)


@pytest.fixture(scope="module")
def plans():
    spec = importlib.util.spec_from_file_location("plans", ROOT / "benchmarks" / "plans.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["plans"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def paired(plans):
    """The plan of a model with itself; pairing 37,000 tensors takes a second or two."""

    @cache
    def make(model):
        checkpoint = plans.headers(model)
        return pair(checkpoint, checkpoint)

    return make


@pytest.fixture
def checkpoint(tmp_path):
    weights = {
        "model.embed_tokens.weight": torch.zeros(10, 8),
        "model.layers.0.mlp.up_proj.weight": torch.zeros(12, 8),
        "model.layers.0.mlp.down_proj.weight": torch.zeros(8, 12),
        "model.norm.weight": torch.zeros(8),
    }
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, tmp_path / "model.safetensors")
    return open_checkpoint(tmp_path)


def test_one_checkpoint_against_tunes_of_itself(checkpoint):
    found = plan_cost(checkpoint, here=FLAT, gpu=FLAT)
    assert (found.tensors, found.matrices, found.weights) == (4, 2, 80 + 96 + 96 + 8)
    assert found.nbytes == 2 * 2 * 280
    assert found == plan_cost(pair(checkpoint, checkpoint), here=FLAT, gpu=FLAT)


def test_flops_against_counting_by_hand(checkpoint):
    found = plan_cost(checkpoint, here=FLAT, gpu=FLAT)
    area, short, k = 96, 8, 4
    gram, vectors, long = 7 / 6 * area * short, 9 * short**3, 2 * area * k
    change = gram + 4 / 3 * short**3
    angles = 8 * (12 + 8) * k**2 + 16 / 3 * k**3
    assert found.flops == pytest.approx(2 * (2 * (gram + vectors + long) + change + angles + 6 * area * k))


def test_a_second_run_pays_for_the_base_once(checkpoint):
    one, three = (plan_cost(checkpoint, runs=runs, here=FLAT, gpu=FLAT) for runs in (1, 3))
    assert three.nbytes == 2 * one.nbytes
    for stage in STAGES:
        times = 1 if stage.once else 2 if stage.name in ("read", "hash") else 3
        assert three.amounts[stage.name] == pytest.approx(times * one.amounts[stage.name])


def test_without_geometry_nothing_is_factored(checkpoint):
    found = plan_cost(checkpoint, geometry=False, here=FLAT, gpu=FLAT)
    assert (found.matrices, found.flops) == (0, 0)
    assert found.hours_here > 0


def test_hours_are_amounts_over_rates_with_hashing_beside_the_rest(checkpoint):
    work = Work("w", 96, 384, 12, 8)
    rest = sum(stage.amount(work) / getattr(FLAT, stage.rate) for stage in STAGES[2:])
    assert seconds(work, FLAT) == pytest.approx(384e-9 + rest)
    assert seconds(work, replace(FLAT, hash=1.0)) == pytest.approx(384e-9 + 384)
    assert seconds(work, replace(FLAT, gemm=2e9)) < seconds(work, FLAT)


@pytest.mark.parametrize("model", ["Llama-3.1-8B", "Llama-3.1-70B"])
def test_gpus_share_the_work_and_a_tensor_is_never_split(paired, model):
    plan = paired(model)
    found = plan_cost(plan, here=FLAT)
    one, eight, many = found.hours_gpus.values()
    assert one / 8 <= eight < one / 7
    assert one / 64 <= many < eight
    largest = max(seconds(cost.work_of(each), ASSUMED_GPU) for each in plan.pairs) / 3600
    assert many <= one / 64 + largest


@pytest.mark.parametrize(
    ("model", "weights"),
    [("Llama-3.1-8B", 8_030_261_248), ("Llama-3.1-70B", 70_553_706_496), ("Qwen3-235B-A22B", 235_093_634_560)],
)
def test_shapes_add_up_to_the_published_models_and_to_the_docs(plans, paired, model, weights):
    """The docs' table is this code's: all of it but the hours of the machine that it was printed on."""
    text = (ROOT / "docs" / "cluster.md").read_text()
    for runs in (1, 3):
        found = plan_cost(paired(model), runs=runs, here=FLAT, gpu=ASSUMED_GPU)
        assert found.weights == weights
        cells = plans.line(found, model, runs).split("|")
        before, after = "|".join(cells[:8]), "|".join(cells[9:])
        assert any(line.startswith(before) and line.endswith(after) for line in text.splitlines()), (before, after)


def test_lines_and_json(checkpoint):
    found = plan_cost(checkpoint, runs=2, here=FLAT)
    words = dict(found.lines())
    assert words["tensors"] == "4, of which 2 matrices are factored"
    assert words["weights"] == "280 in 2 runs against one base"
    assert words["peak memory"].startswith("at most 1.0 GiB per worker (model.layers.0.mlp.")
    assert "on 64 GPUs (assumed rates)" in words
    assert words["rates of a GPU"].startswith("not measured: ")
    assert json.loads(json.dumps(found.to_dict()))["hours_gpus"].keys() == {"1", "8", "64"}


class TestRates:
    @pytest.fixture
    def kept(self, tmp_path, monkeypatch):
        """A cache of its own, and how often something was measured."""
        measured = []
        monkeypatch.setattr(_rates, "cached_assets_path", lambda **_: tmp_path)
        monkeypatch.setattr(_rates, "measure_rates", lambda device: measured.append(device) or FLAT)
        return tmp_path, measured

    def test_measured_once_and_kept(self, kept):
        folder, measured = kept
        assert rates("cpu") == rates("cpu") == FLAT
        assert measured == ["cpu"]
        assert len(list(folder.iterdir())) == 1

    @pytest.mark.parametrize("content", ["", '{"device": "x"', '{"device": "x"}', "[]"])
    def test_a_file_that_was_cut_short_is_measured_again(self, kept, content):
        folder, measured = kept
        rates("cpu")
        next(folder.iterdir()).write_text(content)
        assert rates("cpu") == FLAT
        assert rates("cpu") == FLAT
        assert measured == ["cpu", "cpu"]

    def test_no_cache(self, kept):
        folder, measured = kept
        rates("cpu", cache=False)
        assert measured == ["cpu"]
        assert not list(folder.iterdir())

    def test_measuring_for_real(self, monkeypatch):
        monkeypatch.setattr(_rates, "SIDE", 64)
        threads = torch.get_num_threads()
        found = measure_rates()
        assert torch.get_num_threads() == threads
        assert found.measured
        assert min(found.gemm, found.vectors, found.values, found.count, found.hash) > 1e6
        assert "side 64" in found.source
