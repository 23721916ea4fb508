"""The main path end to end on sharded checkpoints: values against literal torch, resuming, equal bytes, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from offprincipal import CheckFailed, Comparison, InputError, UsageError, compare
from offprincipal.fanout import engine
from offprincipal.fanout._processes import over_processes
from offprincipal.measures import bits
from offprincipal.measures.seeds import torch_generator
from offprincipal.survey import labelled, on_this_machine
from tests.tiny import save_checkpoint, tiny_weights

TABLES = ("tensors.parquet", "curves.parquet", "summary.json", "unpaired.json")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in TABLES}


def test_summary_equals_literal_torch(checkpoint, tmp_path):
    base, tuned = tiny_weights(), tiny_weights(delta=5e-5)
    result = compare(checkpoint("base"), {"rl": checkpoint("rl", delta=5e-5)}, tmp_path / "out", geometry=False)
    run = result.summary["runs"][0]
    moved = {name: bits.changed(base[name], tuned[name]) for name in base}
    inside = [name for name in base if "layers" in name and base[name].ndim == 2]
    assert run["changed"] == sum(int(mask.sum()) for mask in moved.values())
    assert run["counted"] == sum(mask.numel() for mask in moved.values())
    linear = sum(int(moved[n].sum()) for n in inside) / sum(moved[n].numel() for n in inside)
    assert run["sparsity_bf16_linear"] == pytest.approx(1 - linear)
    delta = sum(float((tuned[n].double() - base[n].double()).square().sum()) for n in base)
    assert run["delta_norm"] == pytest.approx(delta**0.5)
    overlaps = []
    for name in inside:
        order = torch.sort(bits.magnitude_code(base[name]).flatten(), stable=True).indices
        low = order[: round(0.5 * order.numel())]
        overlaps.append(float(moved[name].flatten()[low].sum() / moved[name].sum()))
    assert run["overlap_low"] == pytest.approx(sum(overlaps) / len(overlaps))
    assert run["overlap_low_chance"] == pytest.approx(0.5)


def test_rows_hold_every_run_and_tensor_with_places(checkpoint, tmp_path):
    runs = {"a": checkpoint("a", delta=1e-5), "b": checkpoint("b", delta=1e-3)}
    table = compare(checkpoint("base"), runs, tmp_path / "out", geometry=False).table()
    assert table.num_rows == 2 * len(tiny_weights())
    first = table.to_pylist()[0]
    assert first["run"] == "a"
    q = [row for row in table.to_pylist() if row["tensor"] == "model.layers.1.self_attn.q_proj.weight"]
    assert [(row["layer"], row["kind"], row["linear"], row["out_features"]) for row in q] == [(1, "q", True, 32)] * 2


def test_serial_parallel_and_resumed_write_the_same_bytes(checkpoint, tmp_path):
    base, runs = checkpoint("base"), {"a": checkpoint("a", delta=1e-5), "b": checkpoint("b", delta=1e-3)}
    compare(base, runs, tmp_path / "serial")
    compare(base, runs, tmp_path / "parallel", engine=engine("processes", 2))

    def stop_early(done: int, total: int, name: str) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(base, runs, tmp_path / "resumed", progress=stop_early)
    assert not (tmp_path / "resumed" / "summary.json").exists()
    done: list[int] = []
    compare(base, runs, tmp_path / "resumed", progress=lambda n, total, name: done.append(n))
    assert done[0] == 7
    assert bytes_of(tmp_path / "serial") == bytes_of(tmp_path / "parallel") == bytes_of(tmp_path / "resumed")


def test_threads_do_not_change_a_bit_of_the_geometry(tmp_path):
    """At this size products and eigenproblems end in other last bits with another number of threads."""
    name = "model.layers.0.mlp.up_proj.weight"
    generator = torch_generator(0, "threads")
    before = (torch.randn(700, 560, generator=generator) * 0.02).bfloat16()
    steps = [torch.randn(700, 560, generator=generator) * 3e-5 for _ in range(2)]
    base = save_checkpoint(tmp_path / "base", {name: before}, shards=1)
    runs = [save_checkpoint(tmp_path / f"s{i}", {name: (before.float() + step).bfloat16()}, shards=1)
            for i, step in enumerate(steps, 1)]  # fmt: skip
    compare(base, runs, tmp_path / "one", trajectory=True, cache=False)
    compare(
        base,
        runs,
        tmp_path / "two",
        trajectory=True,
        cache=False,
        engine=lambda function, tasks: over_processes(function, iter(tasks), 2),
    )
    for file in ("tensors", "curves", "consensus", "pairs", "steps", "paths"):
        assert (tmp_path / "one" / f"{file}.parquet").read_bytes() == (
            tmp_path / "two" / f"{file}.parquet"
        ).read_bytes()


def test_killed_without_warning_and_run_again(checkpoint, tmp_path):
    base, run = checkpoint("base"), checkpoint("a", delta=1e-5)
    compare(base, [run], tmp_path / "whole")
    command = [sys.executable, "-m", "offprincipal", "compare", str(base), str(run), "-o", str(tmp_path / "killed")]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parts = tmp_path / "killed" / "parts"
    while child.poll() is None and len(list(parts.glob("*.gz"))) < 3:
        time.sleep(0.005)
    if child.poll() is None:
        os.kill(child.pid, signal.SIGKILL)
    child.wait()
    compare(base, [run], tmp_path / "killed")
    for name in ("tensors.parquet", "curves.parquet", "unpaired.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_torn_part_is_measured_again_and_said(checkpoint, tmp_path, caplog):
    base, run = checkpoint("base"), checkpoint("a", delta=1e-5)
    compare(base, [run], tmp_path / "out")
    before = bytes_of(tmp_path / "out")
    torn = sorted((tmp_path / "out" / "parts").glob("*.gz"))[3]
    torn.write_bytes(torn.read_bytes()[:-20])
    compare(base, [run], tmp_path / "out")
    assert "is damaged" in caplog.text
    assert bytes_of(tmp_path / "out") == before


def test_a_folder_of_another_comparison_is_refused(checkpoint, tmp_path):
    base, run = checkpoint("base"), checkpoint("a", delta=1e-5)
    compare(base, [run], tmp_path / "out")
    with pytest.raises(InputError, match=r"holds another comparison \(different runs\)"):
        compare(base, [checkpoint("b", delta=1e-3)], tmp_path / "out")
    with pytest.raises(InputError, match=r"different settings"):
        compare(base, [run], tmp_path / "out", seed=1)


def test_parts_of_another_schema_are_refused(checkpoint, tmp_path):
    base, run = checkpoint("base"), checkpoint("a", delta=1e-5)
    compare(base, [run], tmp_path / "out")
    key = tmp_path / "out" / "parts" / "comparison.json"
    key.write_text(json.dumps({**json.loads(key.read_text()), "schema_version": 0}))
    with pytest.raises(InputError, match="schema version 0, this program writes"):
        compare(base, [run], tmp_path / "out")


def test_two_comparisons_into_one_folder(checkpoint, tmp_path):
    base, run = checkpoint("base"), checkpoint("a", delta=1e-5)

    def again(done: int, total: int, name: str) -> None:
        if done == 1:
            with pytest.raises(InputError, match="another process is comparing into it right now"):
                compare(base, [run], tmp_path / "out")

    compare(base, [run], tmp_path / "out", progress=again)


def test_read_only_folder_and_full_disk(checkpoint, tmp_path, monkeypatch):
    base, run = checkpoint("base"), checkpoint("a", delta=1e-5)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the system says: Not a directory"):
        compare(base, [run], tmp_path / "file" / "out")

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left on device"):
        compare(base, [run], tmp_path / "full")
    assert not list((tmp_path / "full").rglob("*.tmp"))


def test_a_disk_that_fills_up_while_curves_are_written(checkpoint, tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    def full(self: pq.ParquetWriter, table: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(InputError, match=r"cannot write .*curves.parquet'?: the system says: No space left on device"):
        compare(checkpoint("base"), [checkpoint("a", delta=1e-5)], tmp_path / "out", geometry=False)
    assert not list((tmp_path / "out").glob("*.parquet"))
    assert not list((tmp_path / "out").rglob(".*.tmp"))


def test_strict_names_what_is_left_unpaired(checkpoint, tmp_path):
    weights = tiny_weights(delta=1e-5)
    extra = {**weights, "model.layers.0.mlp.extra.weight": torch.zeros(4, 4).bfloat16()}
    tuned = save_checkpoint(tmp_path / "extra", extra)
    result = compare(checkpoint("base"), [tuned], geometry=False)
    assert [item["tensor"] for item in result.unpaired] == ["model.layers.0.mlp.extra.weight"]
    with pytest.raises(CheckFailed, match=r"1 tensors have no partner \(tuned model.layers.0.mlp.extra.weight"):
        compare(tmp_path / "base", [tuned], strict=True)


def test_nan_and_infinity_are_counted_not_fatal(checkpoint, tmp_path):
    weights = tiny_weights(delta=1e-5)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("inf")
    result = compare(checkpoint("base"), [save_checkpoint(tmp_path / "nan", weights)])
    assert result.summary["runs"][0]["nonfinite_tuned"] == 2
    assert result.summary["runs"][0]["nonfinite_base"] == 0


def test_identical_checkpoints_have_nothing_to_overlap(checkpoint):
    base = checkpoint("base")
    run = compare(base, {"same": base}).summary["runs"][0]
    assert run["sparsity_bf16"] == 1.0
    assert "overlap_low" not in run


def test_float32_tune_of_a_bf16_base_reports_both(checkpoint):
    tuned = checkpoint("fp32", delta=1e-6, dtype=torch.float32)
    run = compare(checkpoint("base"), [tuned], geometry=False).summary["runs"][0]
    assert run["sparsity_bf16"] > 0.9
    assert run["sparsity_native"] < run["sparsity_bf16"]


def test_result_without_a_folder_lives_as_long_as_it_is_held(checkpoint, tmp_path):
    result = compare(checkpoint("base"), [checkpoint("a", delta=1e-5)], geometry=False)
    directory = result.directory
    saved = result.save(tmp_path / "saved")
    with pytest.raises(InputError, match="holds a comparison already"):
        result.save(saved)
    assert Comparison.open(saved).table().equals(result.table())
    assert set(result.curves("ulps")["curve"].to_pylist()) == {"ulps"}
    del result
    assert not directory.exists()


def test_opening_what_is_no_comparison(tmp_path):
    with pytest.raises(InputError, match=r"tensors.parquet, curves.parquet, unpaired.json, summary.json missing"):
        Comparison.open(tmp_path)


def test_small_work_stays_in_this_process(checkpoint, tmp_path, monkeypatch):
    import offprincipal.survey

    asked: list[int] = []

    def note(function, tasks, jobs):
        asked.append(jobs)
        return map(function, tasks)

    monkeypatch.setattr(offprincipal.survey, "processes", note)
    base, run = checkpoint("base"), checkpoint("a", delta=1e-5)
    compare(base, [run], tmp_path / "small", engine=on_this_machine)
    monkeypatch.setattr(offprincipal.survey, "WORTH_PROCESSES", 0)
    compare(base, [run], tmp_path / "large", engine=on_this_machine)
    assert asked == [1, min(os.cpu_count() or 1, 8)]


def test_labels():
    with pytest.raises(UsageError, match="no tuned checkpoint was given"):
        labelled([])
    with pytest.raises(UsageError, match="two runs are called 'a'"):
        labelled(["x/a", "y/a"])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_moves_only_what_is_simulated(checkpoint, seed):
    columns = compare(checkpoint("base"), [checkpoint("a", delta=1e-5)], seed=seed, geometry=False).table()
    assert columns["low_rounding"].null_count == 0
    assert (
        columns["changed"].to_pylist()
        == compare(checkpoint("base2"), [checkpoint("a2", delta=1e-5)], seed=7, geometry=False)
        .table()["changed"]
        .to_pylist()
    )
