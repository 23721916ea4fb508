import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offprincipal.errors import InputError
from offprincipal.report.reading import read
from offprincipal.store import SCHEMA_VERSION
from tests.report.synthetic import write_comparison


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def rewrite(copy, change):
    summary = json.loads((copy / "summary.json").read_text())
    change(summary)
    (copy / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize("name", ["summary.json", "tensors.parquet", "curves.parquet", "unpaired.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(
        InputError, match=f"there is no {name} in it; give the folder that `offprincipal compare` wrote"
    ):
        read(copy)


@pytest.mark.parametrize(("version", "advice"), [(SCHEMA_VERSION + 1, "upgrade with `pip install -U offprincipal`"),
                                                 (SCHEMA_VERSION - 1, "compare` again into an empty folder"),
                                                 (None, "compare` again into an empty folder")])  # fmt: skip
def test_another_schema_version_says_which_and_what_to_do(copy, version, advice):
    rewrite(copy, lambda summary: summary.update(schema_version=version))
    with pytest.raises(
        InputError, match=f"schema version {version}, and this offprincipal reads version 1; .*{advice}"
    ):
        read(copy)


def test_broken_files_are_named(copy):
    (copy / "unpaired.json").write_text("[")
    with pytest.raises(InputError, match=r"cannot read '.*unpaired.json': it is not JSON"):
        read(copy)
    (copy / "unpaired.json").write_text("{}")
    with pytest.raises(InputError, match="it holds a dict where a list belongs"):
        read(copy)
    (copy / "tensors.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(InputError, match=r"cannot read '.*tensors.parquet'.*run `offprincipal compare` again"):
        read(copy)


def test_tables_of_another_comparison_are_refused(copy):
    rewrite(copy, lambda summary: summary["runs"].pop(0))
    with pytest.raises(InputError, match="holds the run 'grpo-math', so the files do not belong together"):
        read(copy)
    rewrite(copy, lambda summary: summary.update(runs=[]))
    with pytest.raises(InputError, match="do not belong together"):
        read(copy)


def test_a_table_without_a_needed_column_is_refused(copy):
    table = pq.read_table(copy / "tensors.parquet").drop_columns("counted")
    pq.write_table(table, copy / "tensors.parquet")
    with pytest.raises(InputError, match="has no column 'counted'"):
        read(copy)


def test_nulls_and_absent_columns_read_as_nan(comparison):
    rows = comparison.rows
    assert np.isnan(rows.number("layer")[0])  # the embedding stands in no layer
    assert np.isnan(rows.number("no such column")).all()
    assert not rows.has("no such column")
    assert set(rows.text("no such column")) == {""}


def test_curves_come_whole_and_in_order_whatever_the_row_order(copy):
    first = {(c.run, c.tensor, c.name): c for c in read(copy).curves(["spectrum_base", "ulps"])}
    assert len(first) == 3 * 21 * 2
    table = pq.read_table(copy / "curves.parquet")
    half = table.num_rows // 2
    pq.write_table(pa.concat_tables([table.slice(half), table.slice(0, half)]), copy / "curves.parquet")
    for curve in read(copy).curves(["spectrum_base"]):
        same = first[curve.run, curve.tensor, curve.name]
        np.testing.assert_array_equal(np.sort(curve.x), same.x)


def test_curves_of_chosen_tensors_only(comparison):
    name = "model.layers.1.self_attn.o_proj.weight"
    assert {c.tensor for c in comparison.curves(["ulps"], [name])} == {name}
    assert list(comparison.curves(["no such curve"])) == []


def test_one_run_reads(tmp_path):
    one = read(write_comparison(tmp_path, layers=1, hidden=64, runs=(("only", "rl"),), geometry=False))
    assert one.labels == ("only",)
    assert one.linear("only").num_rows == 7
