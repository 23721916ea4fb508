from offprincipal.report import parts
from offprincipal.report.reading import read
from tests.report.synthetic import write_comparison


def test_the_low_mask_shows_the_null_that_informs(comparison):
    words = parts.parts(comparison)["words"]
    low = [line for line in words["overlaps"] if line["mask"] == "low magnitude"]
    assert all(line["magnitude"] == "= observed" and line["z"] == "–" for line in low)
    assert all(line["rounding"] != "–" and line["z_rounding"] != "–" for line in low)
    others = [line for line in words["overlaps"] if line["mask"] != "low magnitude"]
    assert all("–" not in line.values() for line in others)


def test_the_table_holds_every_row_and_no_empty_column(comparison, tmp_path):
    table = parts.parts(comparison)["table"]
    assert table["rows"] == comparison.rows.length
    assert all(len(column["values"]) == table["rows"] for column in table["columns"])
    plain = parts.parts(read(write_comparison(tmp_path, layers=1, hidden=64, geometry=False)))
    assert not {"nss", "angle", "principal"} & {column["key"] for column in plain["table"]["columns"]}


def test_too_many_experts_are_cut_and_counted(comparison, monkeypatch):
    monkeypatch.setattr(parts, "TABLE_LIMIT", 50)
    table, cut = parts._table(comparison)
    assert (table["rows"], cut) == (50, comparison.rows.length - 50)


def test_what_is_missing_is_said(tmp_path):
    one = read(write_comparison(tmp_path, layers=1, hidden=64, runs=(("only", "rl"),), geometry=False))
    words = parts.parts(one)["words"]
    assert [line.split(":")[0].split(",")[0] for line in words["missing"]] == [
        "Principal masks were not measured",
        "Spectra and principal angles were not measured.",
        "There is one run",
        "The runs are not steps of one run (--trajectory)",
    ]


def test_provenance_is_flat_words(comparison):
    facts = dict(parts.facts(comparison.summary))
    assert facts["base.commit"] == "9b1e" * 10
    assert facts["versions.torch"] == "2.13.0"
    assert facts["run grpo-math.ref"] == "example/grpo-math"
    assert facts["seed"] == "0"
