from offprincipal.report import pictures
from offprincipal.report.reading import read
from tests.report.synthetic import write_comparison


def test_the_principal_mask_once_and_each_update(comparison):
    (group,) = pictures.pictures(comparison)
    titles = [title for title, _ in group["panels"]]
    assert titles == [
        "principal mask of the base",
        "changed by grpo-math",
        "changed by dapo-code",
        "changed by sft-distilled",
    ]
    assert (group["rows"], group["cols"]) == (64, 64)
    assert len(group["panels"][0][1]["datasets"]["rows"]) == 64 * 64


def test_without_a_picture_there_is_no_section(tmp_path):
    assert pictures.pictures(read(write_comparison(tmp_path, layers=1, hidden=64, picture=False))) == []
