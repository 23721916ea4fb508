import json

import pytest

from offprincipal.report import parts


@pytest.fixture(scope="module")
def drawn(comparison):
    return parts.parts(comparison)["charts"]


def test_every_chart_is_there(drawn):
    assert {"map-sparsity", "map-z", "map-nss", "map-angle", "alpha-principal",
            "alpha-low", "excess", "ulps",
            "matrix-spectrum", "matrix-shift", "matrix-angles", "matrix-rows", "matrix-columns",
            "mask-0-0", "mask-0-3",
            "jaccard", "consensus", "step-0"} <= set(drawn)  # fmt: skip


def test_no_chart_names_a_colour(drawn):
    """Only variables, so that the browser can recolour a chart for the dark and for paper."""
    for name, spec in drawn.items():
        assert "#" not in json.dumps(spec, ensure_ascii=False).replace("$schema", "").replace("#/", ""), name


def test_every_overlap_chart_has_its_nulls(drawn):
    def series(name):
        return {row["series"] for row in drawn[name]["datasets"]["rows"]}

    assert series("alpha-principal") == {"observed", "magnitude null", "rounding null", "chance"}
    assert series("alpha-low") == {"observed", "rounding null", "chance"}
    assert series("excess") == {"observed", "magnitude null", "rounding null"}


def test_specifications_are_json_without_nan(drawn):
    json.dumps(drawn, allow_nan=False)
