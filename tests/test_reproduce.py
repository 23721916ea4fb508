"""The registry, and an entry measured from a server that stands in for the Hub, with every way that can fail."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from offprincipal import reproduce as package
from offprincipal.cli import cli
from offprincipal.errors import CheckFailed, InputError, UsageError
from offprincipal.reproduce import Entry, Expected, _registry, _shards, find, registry, reproduce
from offprincipal.survey import compare
from tests.tiny import save_checkpoint, tiny_weights

if TYPE_CHECKING:
    from hub_server import Hub

REPOSITORIES = {"base": (0.0, 0), "one": (3e-5, 0), "two": (3e-5, 1)}
"""Name to the size and the seed of its steps."""

SHARDS = 3
ONE = f"model-00001-of-{SHARDS:05d}.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Hub"]:
    """Three repositories of one base and two runs, three shards each."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import hub_server

    with hub_server.taken_for_the_hub(tmp_path, monkeypatch) as server:
        for name, (delta, seed) in REPOSITORIES.items():
            weights = tiny_weights(delta=delta, seed=seed)
            server.folders[f"org/{name}"] = save_checkpoint(tmp_path / name, weights, shards=SHARDS)
        yield server


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the same comparison says of folders."""
    folder = tmp_path_factory.mktemp("local")
    for name, (delta, seed) in REPOSITORIES.items():
        save_checkpoint(folder / name, tiny_weights(delta=delta, seed=seed))
    return compare(folder / "base", [folder / "one"], geometry=False).summary


def entry(*expected: Expected, runs: tuple[str, ...] = ("one",), **choices: str) -> Entry:
    refs = {name: f"org/{name}" for name in runs}
    return Entry("tiny", "no table", "GRPO", "org/base", refs, "confirmed", expected, **choices)


def weight_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.safetensors"))


def test_every_entry_is_whole():
    entries = list(registry().values())
    assert len({each.name for each in entries}) == len(entries)
    keys = {"sparsity_bf16", "sparsity_atol_1e-5", "jaccard"}
    for each in entries:
        assert each.ids in ("confirmed", "unconfirmed", "missing")
        assert (each.ids == "missing") == ("" in each.runs.values())
        assert each.ids == "confirmed" or each.note
        for expected in each.expected:
            assert expected.key in keys
            assert 0 < expected.value < 1
            assert expected.tolerance == 0.01
            assert expected.run in each.runs if expected.run else (expected.kind, expected.layer) != ("", -1)
    table_1 = [each for each in entries if each.table == "PNT Table 1"]
    values = [2.8, 53.8, 45.5, 52.5, 38.4, 36.3, 0.6, 69.5, 79.9, 18.8, 68.3, 79.3, 61.7, 91.7]  # not "OURS"
    assert [round(100 * each.expected[0].value, 1) for each in table_1] == values


def test_an_entry_is_measured_from_the_hub(hub, local, tmp_path):
    true = local["runs"][0]
    near = Expected(true["sparsity_bf16"] + 0.0099, "here", "one", "sparsity_bf16")
    far = Expected(true["sparsity_bf16"] - 0.0101, "elsewhere", "one", "sparsity_bf16")
    absent = Expected(0.5, "here", "one", "no_such_key")
    second = Expected(0.0, "a second source", "one", "sparsity_native", decides=False)
    done = reproduce(entry(near, far, absent, second), tmp_path / "out")
    assert [check.observed for check in done.checks] == [true["sparsity_bf16"], true["sparsity_bf16"], None,
                                                         true["sparsity_native"]]  # fmt: skip
    assert [check.inside for check in done.checks] == [True, False, False, False]
    assert [check.expected for check in done.failed] == [far, absent]
    written = json.loads((tmp_path / "out" / "reproduce.json").read_text())
    assert written == json.loads(json.dumps(done.to_dict()))
    assert [each["ref"] for each in written["compared"]] == ["org/base", "org/one"]
    assert all(each["commit"] for each in written["compared"])


def test_jaccard_is_the_mean_over_pairs_of_runs(hub, tmp_path):
    asked = (Expected(0.5, "here", kind="q", layer=1), Expected(0.5, "here", kind="router", layer=1))
    done = reproduce(entry(*asked, runs=("one", "two")), tmp_path / "out")
    found = tmp_path / "out" / "pairs.parquet"
    assert found.exists()
    assert 0 < done.checks[0].observed < 1
    assert done.checks[0].expected.what == "jaccard of q, layer 1"
    assert done.checks[1].observed is None
    alone = reproduce(entry(*asked), tmp_path / "alone")
    assert alone.checks[0].observed is None


def test_shards_come_in_order_and_leave_after_their_last_tensor(hub, tmp_path, monkeypatch):
    held, order = [], []
    real = _shards.delete

    def deleted(address):
        held.append(len(weight_files(tmp_path)))
        real(address)

    monkeypatch.setattr(_shards, "delete", deleted)
    done = reproduce(entry(), tmp_path / "out", free_disk=True)
    for item in hub.served:
        if item.path.startswith("/cdn/") and item.status == 200 and item.path not in order:
            order.append(item.path)
    assert [path.rpartition("/")[2] for path in order] == sorted(path.rpartition("/")[2] for path in order)
    assert max(held) == 2  # one shard of each side
    assert weight_files(tmp_path) == []
    assert not [blob for blob in (tmp_path / "cache").rglob("blobs/*") if blob.stat().st_size > 2000]
    assert not (tmp_path / "out" / "downloads.json").exists()
    assert done.comparison.summary["runs"][0]["counted"] > 0


def test_without_the_option_everything_stays(hub, tmp_path):
    reproduce(entry(), tmp_path / "out")
    assert len(weight_files(tmp_path)) == 2 * SHARDS
    assert not (tmp_path / "out" / "downloads.json").exists()
    hub.served.clear()
    reproduce(entry(), tmp_path / "again", offline=True)
    assert hub.served == []


def test_what_was_in_the_cache_before_stays(hub, tmp_path):
    from huggingface_hub import hf_hub_download

    kept = Path(hf_hub_download("org/base", ONE))
    reproduce(entry(), tmp_path / "out", free_disk=True)
    assert [file.name for file in weight_files(tmp_path)] == [ONE]
    assert kept.exists()


@pytest.mark.parametrize("old", [False, True])
def test_content_that_another_snapshot_needs_stays(hub, tmp_path, monkeypatch, old):
    """The same bytes under another commit; with `old`, as huggingface_hub before 2.0 had to be helped."""
    from huggingface_hub import hf_hub_download

    link = Path(hf_hub_download("org/base", ONE))
    other = link.parents[1] / ("f" * 40)
    other.mkdir()
    (other / ONE).symlink_to(Path("../../blobs") / link.resolve().name)
    address = f"hf://org/base@{link.parent.name}/{ONE}"
    if old:
        import huggingface_hub

        monkeypatch.delattr(huggingface_hub.HFCacheInfo, "delete_files")
    _shards.delete(address)
    assert not link.exists()
    assert (other / ONE).read_bytes()
    (other / ONE).unlink()
    again = Path(hf_hub_download("org/base", ONE))
    content = again.resolve()
    _shards.delete(address)
    assert not content.exists()
    _shards.delete(address)  # nothing there: nothing to do


def test_a_stopped_run_goes_on_and_still_cleans_up(hub, tmp_path):
    def stop(done, total, name):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(entry(), tmp_path / "out", free_disk=True, progress=stop)
    assert weight_files(tmp_path)
    assert len(json.loads((tmp_path / "out" / "downloads.json").read_text())) == 2 * SHARDS
    first = {file.name for file in weight_files(tmp_path)}
    hub.served.clear()
    reproduce(entry(), tmp_path / "out", free_disk=True)
    assert weight_files(tmp_path) == []
    again = {
        item.path.rpartition("/")[2] for item in hub.served if item.path.startswith("/cdn/") and item.sent > 100_001
    }
    assert not first & again  # what had come already was not fetched twice


def test_a_damaged_list_of_downloads(hub, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "downloads.json").write_text("[")
    with pytest.raises(InputError, match=r"cannot free what .*it cannot be read .*; delete it; what was downloaded"):
        reproduce(entry(), tmp_path / "out", free_disk=True)


def test_a_file_that_cannot_be_deleted(hub, tmp_path, monkeypatch):
    from huggingface_hub import HFCacheInfo

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(HFCacheInfo, "delete_files", refused)
    with pytest.raises(InputError, match=r"cannot delete .*Permission denied"):
        reproduce(entry(), tmp_path / "out", free_disk=True)


def test_too_many_requests_are_waited_out(hub, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    hub.busy[ONE] = 2  # while headers are read, which huggingface_hub tries again after Retry-After
    done = reproduce(entry(), tmp_path / "out")
    assert done.comparison.summary["runs"][0]["counted"] > 0
    assert [item.status for item in hub.served].count(429) == 2
    assert max(slept) >= 1
    hub.busy[ONE] = 10**6
    with pytest.raises(InputError, match=r"the Hub answered with status 429; try again later"):
        reproduce(entry(runs=("two",)), tmp_path / "other")
    assert not (tmp_path / "other" / "summary.json").exists()


def test_a_connection_that_breaks_within_a_shard(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(_shards, "cached", _cut_after_planning(hub, _shards.cached, 2))
    done = reproduce(entry(), tmp_path / "out", free_disk=True)
    assert done.comparison.summary["runs"][0]["counted"] > 0
    monkeypatch.setattr(_shards, "cached", _cut_after_planning(hub, _shards.cached, 10**6))
    with pytest.raises(InputError, match=r"the connection to .* failed"):
        reproduce(entry(runs=("two",)), tmp_path / "other", free_disk=True)
    assert not (tmp_path / "other" / "summary.json").exists()
    monkeypatch.undo()


def _cut_after_planning(hub, real, times):
    """Headers are read before the first file is looked up in the cache."""

    def cached(address):
        hub.cuts.setdefault(ONE, times)
        return real(address)

    hub.cuts.clear()
    return cached


def test_a_missing_shard_is_said_before_anything_is_downloaded(hub, tmp_path):
    (tmp_path / "one" / ONE).unlink()
    with pytest.raises(InputError, match=f"names '{ONE}', which is not there"):
        reproduce(entry(), tmp_path / "out", free_disk=True)
    assert not (tmp_path / "out").exists()
    assert weight_files(tmp_path) == []


def test_another_comparison_in_the_folder_is_left_alone(hub, tmp_path):
    reproduce(entry(), tmp_path / "out")
    before = sorted(file.name for file in (tmp_path / "out").iterdir())
    with pytest.raises(InputError, match="it holds another comparison"):
        reproduce(entry(runs=("two",)), tmp_path / "out", free_disk=True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == before


def test_entries_that_cannot_run():
    with pytest.raises(UsageError, match=r"cannot reproduce 'fly': no entry has that name; choose one of distill-sft"):
        find("fly")
    with pytest.raises(UsageError, match="no repository is known for UloRL-A3B; compare it yourself"):
        find("ulorl")


@pytest.fixture
def command(hub, local, monkeypatch):
    """The command line over a registry of two entries, one true and one false."""
    value = local["runs"][0]["sparsity_bf16"]
    good = entry(Expected(value, "here", "one", "sparsity_bf16"), note="mind this")
    bad = Entry(
        **{**vars(good), "name": "false", "expected": (Expected(value - 0.1, "there", "one", "sparsity_bf16"),)}
    )
    monkeypatch.setattr(_registry, "registry", lambda: {"tiny": good, "false": bad})
    monkeypatch.setattr(package, "registry", _registry.registry)
    return lambda *arguments: CliRunner().invoke(cli, ["reproduce", *map(str, arguments)])


def test_command_line(command, tmp_path):
    done = command("tiny", "-o", tmp_path / "out", "--free-disk")
    assert done.exit_code == 0, done.output
    for words in ("observed", "expected", "difference", "tolerance", "inside", "What was measured", "org/one"):
        assert words in done.stdout
    machine = command("tiny", "-o", tmp_path / "out", "--json")
    assert json.loads(machine.stdout)["failed"] == 0
    outside = command("false", "-o", tmp_path / "other")
    assert isinstance(outside.exception, CheckFailed)
    assert "1 of 1 numbers lie outside their tolerance, first one: sparsity_bf16: observed" in str(outside.exception)
    assert "outside" in outside.stdout


def test_the_list_and_wrong_use(command):
    table = command("--list")
    assert "org/base -> org/one" in table.stdout.replace("\n", " ")
    assert [each["name"] for each in json.loads(command("--list", "--json").stdout)] == ["tiny", "false"]
    for arguments, words in ((["tiny"], "no folder was given"), (["-o", "x"], "no name was given")):
        wrong = command(*arguments)
        assert isinstance(wrong.exception, UsageError)
        assert words in str(wrong.exception)


def test_the_whole_registry_is_listed():
    done = CliRunner().invoke(cli, ["reproduce", "--list"])
    for name in registry():
        assert name in done.stdout
