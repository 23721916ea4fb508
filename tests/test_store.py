"""Part files: whole or absent, refused when foreign."""

import json

import pytest

from offprincipal.errors import InputError
from offprincipal.store import Store, write_file

KEY = {"base": "b", "runs": {"a": 1}}


def test_parts_come_back_bit_for_bit(tmp_path):
    store = Store(tmp_path / "out", KEY)
    part = {"x": [0.1 + 0.2, 5e-324, float("inf"), 1 / 3], "n": 2**62}
    store.add("model.w", part)
    assert "model.w" in store
    assert "model.v" not in store
    assert store.get("model.w") == part
    assert store.get("model.v") is None


def test_same_part_same_bytes(tmp_path):
    stores = [Store(tmp_path / name, KEY) for name in ("one", "two")]
    for store in stores:
        store.add("w", {"a": 1.5})
    one, two = (next(store.parts.glob("*.gz")).read_bytes() for store in stores)
    assert one == two


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*: the system says: No such file or directory"):
        write_file(tmp_path / "missing" / "file", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["not json", "[1]"])
def test_a_damaged_key_is_said(tmp_path, content):
    store = Store(tmp_path / "out", KEY)
    (store.parts / "comparison.json").write_text(content)
    with pytest.raises(InputError, match=r"comparison\.json (cannot be read|is not a comparison's key)"):
        Store(tmp_path / "out", KEY)


def test_results_without_parts_are_not_overwritten(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match="holds results without their parts"):
        Store(tmp_path, KEY)


def test_shares_of_one_folder_do_not_exclude_each_other(tmp_path):
    store = Store(tmp_path, KEY)
    with store.locked("shard-0"), store.locked("shard-1"):
        again = store.locked("shard-0")
        with pytest.raises(InputError, match="another process"):
            again.__enter__()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with Store(tmp_path, KEY).locked():
        pass
    assert "make sure that nobody else writes there" in caplog.text
