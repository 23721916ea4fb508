"""Gate II from folder to table: planted curvature is found, and every row is what the forms say."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from offprincipal.checkpoint import open_checkpoint
from offprincipal.errors import InputError, UsageError
from offprincipal.probes import curvature, forms
from offprincipal.probes.curvature import ALL, Settings, deal, measure_curvature, updates
from offprincipal.probes.directions import PARTS, matrices_of
from offprincipal.probes.models import load_tokenizer
from offprincipal.probes.texts import padded, read_texts
from tests.probes.conftest import loaded, write_prompts

CHOICES = {"batches": 3, "draws": 3, "rank": 3, "matrices": 2}


@pytest.fixture(scope="module")
def measured(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("curvature")
    runs = {"a": folders["rl"], "b": folders["rl2"]}
    return measure_curvature(folders["base"], runs, out, prompts=write_prompts(out / "p.txt"), **CHOICES), out


def test_every_direction_of_every_block_in_every_batch(measured):
    found, folder = measured
    rows = pq.read_table(folder / "probe-curvature.parquet").to_pylist()
    blocks = {row["block"] for row in rows}
    assert len(blocks) == 3
    assert ALL in blocks
    for block in blocks:
        for run in ("a", "b"):
            own = [(r["part"], r["draw"], r["batch"]) for r in rows if r["block"] == block and r["run"] in (run, "")]
            assert sorted(own) == sorted((p, d, b) for p in PARTS for d in (-1, 0, 1, 2) for b in range(3))
    for run in found["runs"]:
        assert run["fisher_update"] == run["all"]["fisher update whole"]["ratio"]
        assert run["fisher_update_verdict"] in ("sharper", "flatter", "cannot tell")
        assert run["fisher_update_detectable"] > 1
        assert len(run["matrices"]) == 2
        counts = run["verdicts"]["hessian update on"]
        assert counts["sharper"] + counts["flatter"] + counts["cannot tell"] == counts["matrices"] == 2
    assert json.loads((folder / "probe-curvature.json").read_text()) == found


def test_one_row_is_the_quotient_of_the_update_itself(measured, folders, prompts):
    _, folder = measured
    rows = pq.read_table(folder / "probe-curvature.parquet").to_pylist()
    base, tuned = (loaded(folders[name], derivatives=True) for name in ("base", "rl"))
    texts = read_texts(prompts, load_tokenizer(open_checkpoint(folders["base"])))
    block = next(row["block"] for row in rows if row["block"] != ALL)
    delta = tuned.weights()[block] - base.weights()[block]
    twin = forms.curvature(base, padded(texts[1::3]), {block: (delta / delta.norm())[None]})
    row = next(r for r in rows if (r["block"], r["run"], r["part"], r["batch"]) == (block, "a", "whole", 1))
    assert row["fisher"] == pytest.approx(float(twin.fisher[0]), rel=1e-4)
    assert row["hessian"] == pytest.approx(float(twin.hessian[0]), rel=1e-3)


def test_runs_alone_or_together_and_directions_one_by_one_give_the_same(folders, prompts, tmp_path, monkeypatch):
    choices = {"batches": 2, "draws": 2, "matrices": 0, "prompts": prompts}
    runs = {"a": folders["rl"], "b": folders["rl2"]}
    together = measure_curvature(folders["base"], runs, tmp_path / "x", **choices)
    monkeypatch.setattr(curvature, "AT_ONCE", 1)
    alone = measure_curvature(folders["base"], {"b": folders["rl2"]}, tmp_path / "y", **choices)
    one, other = together["runs"][1]["all"], alone["runs"][0]["all"]
    for name, found in one.items():
        assert found["quotient"] == pytest.approx(other[name]["quotient"], rel=1e-4)


def test_a_planted_update_along_the_gradient_is_sharper_than_random(folders, prompts, tmp_path):
    """A step along the scores of the text itself lies where the Fisher matrix is large; a random one does not."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(folders["base"])
    base = loaded(folders["base"])
    texts = read_texts(prompts, load_tokenizer(open_checkpoint(folders["base"])))
    batch = padded(texts)
    logits = module(input_ids=batch.ids, attention_mask=batch.seen.long()).logits[:, :-1][batch.scored]
    torch.nn.functional.cross_entropy(logits, batch.following).backward()
    steep = {matrix.parameter for matrix in matrices_of(base)}
    for name, weight in module.named_parameters():
        weight.data -= 0.1 * weight.grad if name in steep else 0
    module.save_pretrained(tmp_path / "step")
    choices = {"batches": 6, "draws": 4, "matrices": 0}
    found = measure_curvature(folders["base"], {"step": tmp_path / "step"}, tmp_path / "x", prompts=prompts, **choices)
    run = found["runs"][0]
    assert run["fisher_update_verdict"] == "sharper"
    assert run["fisher_update"] > 3
    assert run["matrices"] == []
    noise = measure_curvature(folders["base"], {"noise": folders["rl"]}, tmp_path / "y", prompts=prompts, **choices)
    assert noise["runs"][0]["fisher_update_verdict"] == "cannot tell"


def test_nothing_changed_or_another_model(model, folders):
    base = loaded(folders["base"])
    matrices = matrices_of(base)
    with pytest.raises(InputError, match="along 'x': no linear matrix differs from the base's: D = 0"):
        updates(base, loaded(folders["base"]), matrices, "x")
    with pytest.raises(InputError, match=r"it has no model\.layers\.1\.self_attn\.q_proj\.weight of the base's shape"):
        updates(base, loaded(model("small", num_hidden_layers=1)), matrices, "x")


def test_a_matrix_that_did_not_change_is_counted_and_left_out(folders, prompts, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    half = tmp_path / "half"
    shutil.copytree(folders["base"], half)
    weights = load_file(half / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] += 0.01
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    choices = {**CHOICES, "matrices": None}
    run = measure_curvature(folders["base"], [half], tmp_path / "out", prompts=prompts, **choices)["runs"][0]
    assert run["unchanged_matrices"] == 13
    assert [each["block"] for each in run["matrices"]] == ["model.layers.0.mlp.up_proj.weight"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batches": 1}, "an interval needs two batches and two draws"),
        ({"draws": 1}, "an interval needs two batches and two draws"),
        ({"rank": 0}, "a size is below its least"),
        ({"matrices": -1}, "a size is below its least"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(UsageError, match=words):
        Settings(prompts="p.txt", **options)


def test_one_prompt_gives_no_interval(folders, tmp_path):
    (tmp_path / "p.txt").write_text("a b c")
    texts = read_texts(tmp_path / "p.txt", load_tokenizer(open_checkpoint(folders["base"])))
    with pytest.raises(InputError, match="there is one prompt; give at least two"):
        deal(texts, 16, "cpu")
    assert [len(batch.texts) for batch in deal(texts * 5, 2, "cpu")] == [3, 2]
