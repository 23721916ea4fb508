"""Gate I from folder to table: literal twin, Monte Carlo, laws, settings, and what a comparison's folder gains."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from offprincipal.checkpoint import open_checkpoint
from offprincipal.errors import InputError, UsageError
from offprincipal.probes import divergence
from offprincipal.probes.kl import Settings, measure_kl, score
from offprincipal.probes.models import load_tokenizer
from offprincipal.probes.texts import read_texts, sample
from tests.probes.conftest import loaded


def literal(first, second, text):
    """One text, one position and one token of the vocabulary at a time."""
    rows = []
    for at in range(text.first - 1, len(text.ids) - 1):
        p, q = (
            m.module(input_ids=torch.tensor([text.ids[: at + 1]])).logits[0, -1].double().softmax(-1)
            for m in (first, second)
        )
        pairs = list(zip(p.tolist(), q.tolist(), strict=True))
        rows.append(
            [
                sum(a * (np.log(a) - np.log(b)) for a, b in pairs),
                sum(b * (np.log(b) - np.log(a)) for a, b in pairs),
                sum(abs(a - b) for a, b in pairs) / 2,
            ]
        )
    return rows


def test_equals_its_literal_twin_token_by_token(folders, prompts, tmp_path):
    found = measure_kl(folders["base"], {"rl": folders["rl"]}, tmp_path / "out", prompts=prompts, batch=4)
    table = pq.read_table(tmp_path / "out" / "probe-kl.parquet")
    base, rl = loaded(folders["base"]), loaded(folders["rl"])
    texts = read_texts(prompts, load_tokenizer(open_checkpoint(folders["base"])))
    twin = [row for text in texts for row in literal(rl, base, text)]
    measured = np.stack([table[name].to_numpy() for name in divergence.NAMES], 1)
    assert measured == pytest.approx(np.array(twin), rel=1e-3, abs=1e-9)
    assert table["token"].to_pylist() == [token for text in texts for token in text.ids[text.first :]]
    run = found["runs"][0]
    assert run["tokens"] == len(twin)
    assert run["kl_tuned_base"] == pytest.approx(float(np.mean(twin, 0)[0]), rel=1e-4)
    assert run["kl_tuned_base_low"] < run["kl_tuned_base"] < run["kl_tuned_base_high"]
    each = pq.read_table(tmp_path / "out" / "probe-kl-prompts.parquet").to_pylist()
    assert [row["tokens"] for row in each] == [4, 2, 7, 1, 5, 3]
    assert sum(row["tv"] for row in each) == pytest.approx(measured[:, 2].sum())


def test_on_samples_it_is_what_a_monte_carlo_estimate_tends_to(folders):
    """E log p/q over samples of p equals the mean exact token KL on the same samples, within sampling error."""
    p, q = loaded(folders["rl"]), loaded(folders["base"])
    drawn = sample(p, [(3, 4), (5, 6, 7)], 200, ends=[1], longest=3, seed=0, size=200)
    exact = {id(text): float(rows[:, 0].sum()) for text, rows in score(p, q, drawn, 200, "cpu")}
    estimates = []
    for text in drawn:
        ids, ones = torch.tensor([text.ids]), torch.ones(1, len(text.ids), dtype=torch.bool)
        log_p, log_q = (m.logits(m.hidden(ids, ones)[0]).double().log_softmax(-1) for m in (p, q))
        estimates.append(
            sum(float(log_p[i - 1, text.ids[i]] - log_q[i - 1, text.ids[i]]) for i in range(text.first, len(text.ids)))
        )
    off = np.array(estimates) - np.array([exact[id(text)] for text in drawn])
    assert abs(off.mean()) < 4 * off.std() / len(off) ** 0.5
    assert np.mean(list(exact.values())) > 4 * off.std() / len(off) ** 0.5  # the estimate is sharp enough to say so


def test_a_model_against_itself_is_exactly_zero(folders, prompts, tmp_path):
    found = measure_kl(folders["base"], {"same": folders["base"]}, tmp_path, prompts=prompts)
    assert [found["runs"][0][f"{name}_sum"] for name in divergence.NAMES] == [0.0, 0.0, 0.0]


def test_exchanging_the_two_exchanges_the_directions_and_batches_change_nothing(folders, prompts, tmp_path):
    there = measure_kl(folders["base"], {"x": folders["rl"]}, tmp_path / "a", prompts=prompts, batch=1)["runs"][0]
    back = measure_kl(folders["rl"], {"x": folders["base"]}, tmp_path / "b", prompts=prompts, batch=6)["runs"][0]
    assert there["kl_tuned_base"] == pytest.approx(back["kl_base_tuned"], rel=1e-4)
    assert there["tv"] == pytest.approx(back["tv"], rel=1e-4)


def test_logits_are_met_a_few_positions_at_a_time(folders, prompts, tmp_path, monkeypatch):
    whole = measure_kl(folders["base"], {"rl": folders["rl"]}, tmp_path / "a", prompts=prompts)
    monkeypatch.setattr(divergence, "BUDGET", 29 * 2)  # two positions of this vocabulary
    most = []
    original = divergence.divergences
    monkeypatch.setattr("offprincipal.probes.kl.divergences", lambda a, b: most.append(len(a)) or original(a, b))
    pieces = measure_kl(folders["base"], {"rl": folders["rl"]}, tmp_path / "b", prompts=prompts)
    assert max(most) == 2
    assert pieces["runs"][0]["kl_tuned_base"] == pytest.approx(whole["runs"][0]["kl_tuned_base"], rel=1e-6)


def test_a_padded_vocabulary_is_compared_on_its_common_tokens(model, folders, prompts, tmp_path):
    from transformers import AutoModelForCausalLM

    wide = AutoModelForCausalLM.from_pretrained(folders["base"])
    wide.resize_token_embeddings(40, mean_resizing=False)
    wide.save_pretrained(tmp_path / "wide")
    run = measure_kl(folders["base"], {"wide": tmp_path / "wide"}, tmp_path / "out", prompts=prompts)["runs"][0]
    assert run["vocabulary"] == [40, 29]
    assert run["kl_tuned_base_max"] < 1e-12


def test_continuations_of_each_run_or_of_the_base(folders, prompts, tmp_path):
    choices = {"prompts": prompts, "sample": 2, "max_new_tokens": 5}
    runs = {"a": folders["rl"], "b": folders["rl2"]}
    own = measure_kl(folders["base"], runs, tmp_path / "a", **choices)
    again = measure_kl(folders["base"], runs, tmp_path / "b", **choices)
    given = measure_kl(folders["base"], runs, tmp_path / "c", sampled_by="base", **choices)
    assert own["runs"] == again["runs"]
    assert all(run["texts"] == 12 and run["prompts"] == 6 for run in own["runs"])
    tables = [pq.read_table(tmp_path / name / "probe-kl.parquet").to_pylist() for name in ("a", "c")]
    tokens = [{run: [row["token"] for row in rows if row["run"] == run] for run in runs} for rows in tables]
    assert tokens[0]["a"] != tokens[0]["b"]
    assert tokens[1]["a"] == tokens[1]["b"]
    assert "continuations sampled from the base" in given["section"]["sentences"][0]


def test_samples_without_prompts_begin_at_the_beginning(folders, tmp_path):
    run = measure_kl(folders["base"], [folders["rl"]], tmp_path, sample=5, max_new_tokens=3)["runs"][0]
    assert (run["label"], run["prompts"], run["texts"]) == ("rl", 5, 5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "neither prompts nor a number of samples was given"),
        ({"sample": -1}, "a size is below 1"),
        ({"sample": 1, "batch": 0}, "a size is below 1"),
        ({"sample": 1, "sampled_by": "chance"}, "'chance' is neither tuned nor base"),
        ({"sample": 1, "device": "warp"}, "cannot compute on 'warp'"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(UsageError, match=words):
        Settings(**options)


def test_texts_beyond_the_model(folders, tmp_path):
    (tmp_path / "long.txt").write_text("a b " * 40)
    with pytest.raises(InputError, match="prompt 1 has 80 tokens, and the model has 32 positions"):
        measure_kl(folders["base"], [folders["rl"]], tmp_path / "out", prompts=tmp_path / "long.txt")
    assert not list((tmp_path / "out").iterdir())


def test_a_comparison_gains_the_numbers_and_nothing_else_changes(folders, prompts, tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"schema_version": 1, "probes": {"fisher": [1]}}))
    found = measure_kl(folders["base"], {"rl": folders["rl"]}, tmp_path, prompts=prompts, command="offprincipal probe")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["probes"]["fisher"] == [1]
    assert summary["probes"]["kl"][0]["kl_tuned_base"] == found["runs"][0]["kl_tuned_base"]
    stored = json.loads((tmp_path / "probe-kl.json").read_text())
    assert stored == found
    assert stored["command"] == "offprincipal probe"
    assert {"settings", "definitions", "versions", "section", "base"} <= set(stored)


def test_progress_is_told(folders, prompts, tmp_path):
    said = []
    measure_kl(folders["base"], [folders["rl"]], tmp_path, prompts=prompts, progress=lambda *x: said.append(x))
    assert said[-1] == (6, 6, "rl")
