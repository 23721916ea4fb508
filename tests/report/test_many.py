from offprincipal.report import many

LABELS = ("a", "b", "c")


def test_pairs_by_name_by_index_and_as_matrices():
    by_name = {"pairs": [{"a": "a", "b": "b", "jaccard": 0.5, "z": 3.0}]}
    by_index = {"pairs": [{"left": 0, "right": 1, "jaccard": 0.5, "excess_z": 3.0}]}
    for found in (many.pairs(by_name, LABELS), many.pairs(by_index, LABELS)):
        assert (found[0]["a"], found[0]["b"], found[0]["z"]) == ("a", "b", 3.0)
    square = {"jaccard": [[1, 0.2, 0.3], [0.2, 1, 0.4], [0.3, 0.4, 1]]}
    assert [(p["a"], p["b"], p["jaccard"]) for p in many.pairs(square, LABELS)] == [
        ("a", "b", 0.2), ("a", "c", 0.3), ("b", "c", 0.4)
    ]  # fmt: skip


def test_one_mean_when_there_are_no_pairs():
    found = many.pairs({"jaccard": 0.5, "jaccard_bernoulli": 0.4, "jaccard_matched": None}, LABELS)
    spec = many.jaccard(found)
    assert {row["series"] for row in spec["datasets"]["rows"]} == {"observed", "chance (Bernoulli)"}
    assert many.jaccard([{"a": "a", "b": "b"}]) is None


def test_histograms():
    assert many.histogram({}) is None
    assert many.histogram({"histogram": [0, 0]}) is None
    rows = many.histogram({"histogram": [3, 1]})["datasets"]["rows"]
    assert [row["share"] for row in rows] == [0.75, 0.25]


def test_a_trajectory_draws_what_the_steps_carry():
    first = {"label": "s1", "density": 0.1, "angle_max_deg": {"16": 1.0, "64": 2.0}, "odd_one": 1, "flag": True}
    steps = [first, first | {"label": "s2", "angle_max_deg": {"16": 2.0, "64": 4.0}}]
    drawn = dict(many.trajectory(steps))
    assert set(drawn) == {"Share of weights changed", "Largest principal angle, degrees", "odd one"}
    angle = drawn["Largest principal angle, degrees"]["datasets"]["rows"]
    assert [row["value"] for row in angle] == [2.0, 4.0]
    assert many.trajectory(steps[:1]) == []
    assert many.trajectory(None) == []


def test_a_null_is_drawn_beside_its_number_not_as_one_of_its_own():
    steps = [{"label": str(i), "jaccard_end": 0.5, "jaccard_end_matched": 0.4, "step": 100.0 * i} for i in (1, 2)]
    ((title, spec),) = many.trajectory(steps)
    assert title == "Jaccard with the last step"
    assert {row["series"] for row in spec["datasets"]["rows"]} == {"observed", "magnitude null"}


def test_the_histogram_stands_beside_its_null():
    rows = many.histogram({"histogram": [3, 1], "histogram_matched": [2.0, 2.0]})["datasets"]["rows"]
    assert [row["share"] for row in rows if row["series"] == "magnitude null"] == [0.5, 0.5]


def test_the_path_in_words():
    found = dict(
        many.path({"never": 0.25, "linearity_r2": 0.9, "linearity_r2_random_walk": 0.68, "straight_share": None})
    )
    assert list(found.values()) == ["25.0\xa0%", "0.900", "0.680"]
    assert many.path(None) == []
