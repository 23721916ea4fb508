"""The command line as a person or a script meets it: output, exit codes, help for every verb, frozen flags."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from safetensors.torch import save_file

from offprincipal.cli import cli

ROOT = Path(__file__).parents[1]


def run(*arguments: object, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "offprincipal", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def verbs(group: click.Group = cli, prefix: str = "") -> dict[str, click.Command]:
    found = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= verbs(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


def test_compare_prints_the_null_beside_the_number_and_where_the_result_lies(checkpoint, tmp_path):
    done = run("compare", checkpoint("base"), f"rl={checkpoint('rl', delta=3e-5)}", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for words in (
        "What changed",
        "unchanged (bf16)",
        "chance",
        "rounding null",
        "magnitude null",
        "rl, by kind",
        "by layer",
    ):
        assert words in done.stdout, words
    assert f"results: {tmp_path / 'out'}" in done.stderr
    assert "tensors: 21 of 21" in done.stderr


def test_json_is_the_summary_and_nothing_else_on_stdout(checkpoint, tmp_path):
    done = run("compare", checkpoint("base"), checkpoint("rl", delta=3e-5), "-o", tmp_path / "out", "--json", "-j", 2)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["runs"][0]["label"] == "rl"
    assert summary["command"].startswith("offprincipal compare ")
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())


def test_inspect_table_and_json(checkpoint):
    base = checkpoint("base")
    table, machine = run("inspect", base), run("inspect", base, "--json")
    assert table.returncode == machine.returncode == 0, table.stderr + machine.stderr
    assert "llama" in table.stdout
    description = json.loads(machine.stdout)
    assert len(description["rows"]) == 21
    assert description["by_dtype"]["BF16"]["tensors"] == 21


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["compare", "nowhere", "x", "-o", "out"], 3, "offprincipal: cannot open checkpoint 'nowhere'"),
        (["compare", "nowhere"], 2, "Missing"),
        (["compare", "nowhere", "x"], 2, "Missing option '-o'"),
        (["compare", "b", "a=x", "a=y", "-o", "out"], 2, "two runs are called 'a'"),
        (["inspect", "nowhere"], 3, "cannot open checkpoint"),
        (["fly"], 2, "No such command 'fly'"),
    ],
)
def test_bad_input_gives_one_line_and_an_exit_code(arguments, code, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_strict_fails_with_one(checkpoint, tmp_path):
    from tests.tiny import save_checkpoint, tiny_weights

    weights = tiny_weights(delta=1e-5)
    weights["extra.weight"] = weights.pop("model.layers.1.mlp.up_proj.weight")
    tuned = save_checkpoint(tmp_path / "renamed", weights)
    done = run("compare", checkpoint("base"), tuned, "-o", tmp_path / "out", "--strict")
    assert done.returncode == 1
    assert "tensors have no partner" in done.stderr
    assert not (tmp_path / "out").exists()


def test_shards_then_the_same_command_gathers(checkpoint, tmp_path):
    base, run_ = checkpoint("base"), checkpoint("rl", delta=3e-5)
    common = ["compare", base, run_, "-o", tmp_path / "out", "--no-geometry", "--no-report"]
    for index in (0, 1):
        done = run(*common, "--num-shards", 2, "--shard-index", index)
        assert done.returncode == 0, done.stderr
    assert "0 tensors of the whole are missing" in done.stderr
    assert run(*common).returncode == 0
    alone = run(*common, "--num-shards", 2)
    assert (alone.returncode, "only one of --num-shards and --shard-index" in alone.stderr) == (2, True)


def test_report_is_drawn_by_compare_and_again(checkpoint, tmp_path):
    done = run("compare", checkpoint("base"), checkpoint("rl", delta=3e-5), "-o", tmp_path / "out")
    page = tmp_path / "out" / "report.html"
    assert f"report: {page}" in done.stderr
    page.unlink()
    again = run("report", tmp_path / "out")
    assert again.returncode == 0, again.stderr
    assert page.stat().st_size > 100_000
    assert run("report", tmp_path).returncode == 3


def test_compare_without_the_extra_says_what_to_install(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "altair.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "absent"))
    done = run("compare", checkpoint("base"), checkpoint("rl", delta=3e-5), "-o", tmp_path / "out")
    assert done.returncode == 0
    assert "no report: the package 'altair' is not installed; run `pip install offprincipal[report]`" in done.stderr
    assert "Traceback" not in done.stderr


def test_cache_is_shown_and_cleared(checkpoint, tmp_path):
    run("compare", checkpoint("base"), checkpoint("rl", delta=3e-5), "-o", tmp_path / "out", "--no-report")
    shown = json.loads(run("cache", "--json").stdout)
    assert shown["matrices"] >= 14
    assert "cleared" in run("cache", "--clear").stdout
    assert json.loads(run("cache", "--json").stdout)["matrices"] == 0


def test_inspect_plan_estimates_from_headers(checkpoint):
    done = run("inspect", checkpoint("base"), "--plan")
    assert done.returncode == 0, done.stderr
    assert "estimated from headers" in done.stdout
    assert json.loads(run("inspect", checkpoint("base2"), "--plan", "--json").stdout)["plan"]["tensors"] == 21


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_has_help_an_example_and_a_page(verb):
    command = verbs()[verb]
    assert command.help
    assert command.epilog
    assert command.epilog.startswith(f"Example: offprincipal {verb}")
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert f"offprincipal {verb}" in pages


def test_flags_are_frozen():
    """A flag is a promise: adding one means adding it here and to the docs; removing one breaks scripts."""
    flags = {
        verb: sorted(o for p in command.params for o in p.opts if o.startswith("--"))
        for verb, command in verbs().items()
    }
    assert flags == {
        "inspect": ["--all", "--json", "--offline", "--plan", "--runs"],
        "compare": [
            "--device", "--engine", "--jobs", "--json", "--no-cache", "--no-geometry", "--no-report", "--num-shards",
            "--offline", "--out", "--seed", "--shard-index", "--strict", "--trajectory",
        ],
        "report": ["--figures"],
        "probe kl": [
            "--batch", "--device", "--json", "--max-new-tokens", "--out", "--prompts", "--sample", "--sampled-by",
            "--seed",
        ],
        "probe curvature": [
            "--batches", "--device", "--draws", "--json", "--matrices", "--out", "--prompts", "--rank", "--seed",
        ],
        "probe fisher": ["--batch", "--device", "--halvings", "--json", "--out", "--prompts", "--seed"],
        "adapter init": [
            "--alpha", "--directions", "--jobs", "--json", "--method", "--no-cache", "--offline", "--out", "--rank",
            "--rho",
            "--seed", "--target",
        ],
        "adapter export": ["--base", "--init", "--json", "--out", "--rank"],
        "adapter verify": [
            "--base", "--init", "--jobs", "--json", "--merge-drift", "--no-cache", "--no-logits", "--offline",
        ],
        "transform rotate": [
            "--basis", "--dtype", "--json", "--layers", "--offline", "--out", "--per-group", "--residual", "--seed",
            "--verify",
        ],
        "transform permute": ["--dtype", "--json", "--layers", "--offline", "--only", "--out", "--seed", "--verify"],
        "transform restore-spectrum": ["--dtype", "--json", "--layers", "--offline", "--out", "--strength"],
        "transform swap-spectrum": ["--dtype", "--json", "--layers", "--offline", "--out"],
        "transform keep-rank": ["--dtype", "--json", "--layers", "--offline", "--out", "--rank"],
        "transform scale": ["--dtype", "--factor", "--json", "--layers", "--offline", "--out"],
        "transform round": ["--dtype", "--json", "--offline", "--out"],
        "transform map-back": ["--base", "--dtype", "--json", "--offline", "--out"],
        "forecast": ["--json", "--lr", "--offline", "--optimizer", "--out", "--steps"],
        "reproduce": ["--free-disk", "--geometry", "--json", "--list", "--offline", "--out"],
        "mask build": [
            "--alpha", "--density", "--device", "--engine", "--include-all", "--jobs", "--json", "--kind", "--like",
            "--no-cache", "--offline", "--out", "--rank", "--seed",
        ],
        "mask show": ["--json"],
        "mask overlap": ["--base", "--json", "--offline", "--seed"],
        "mask consensus": ["--base", "--json", "--min-agree", "--offline", "--out"],
        "mask combine": ["--json", "--out"],
        "mask map-back": ["--base", "--json", "--offline", "--out"],
        "cache": ["--clear", "--json"],
        "lab run": ["--intervene", "--json", "--minutes", "--neurons", "--out", "--preset", "--seed"],
        "lab claims": ["--jobs", "--json", "--out", "--publish", "--seed"],
        "lab matched": ["--algorithms", "--jobs", "--json", "--minutes", "--out"],
        "lab arms": [
            "--arms", "--jobs", "--json", "--lr", "--minutes", "--out", "--preset", "--rank", "--seed", "--seeds",
        ],
    }  # fmt: skip


def test_import_is_light():
    """Cheap to import, and no extra comes along."""
    program = (
        "import sys, time, torch; start = time.perf_counter(); import offprincipal; "
        "spent = time.perf_counter() - start; "
        "heavy = [m for m in ('transformers', 'trl', 'altair', 'ray', 'numba', 'pyarrow') if m in sys.modules]; "
        "print(spent < 1, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True []"


@pytest.mark.parametrize("verb", ["inspect", "report", "compare"])
def test_what_reads_headers_and_tables_takes_no_torch(verb, tmp_path):
    """A second for nothing; a comparison leaves the import to its workers."""
    folders = [str(tmp_path / name) for name in ("base", "tuned")]
    for value, folder in enumerate(folders):
        Path(folder).mkdir()
        weights = {f"model.layers.{i}.mlp.up_proj.weight": torch.full((9, 8), 1.0 + value) for i in range(2)}
        save_file(weights, f"{folder}/model.safetensors")
    out = str(tmp_path / "out")
    done = ["offprincipal", "compare", *folders, "-o", out, "--no-cache"]
    if verb == "report":
        subprocess.run([sys.executable, "-m", *done], check=True, capture_output=True, timeout=120)
    asked = {"inspect": [*done[:1], "inspect", folders[0]], "report": [*done[:1], "report", out], "compare": done}
    program = (
        f"import sys; sys.argv = {asked[verb]!r}\n"
        "from offprincipal import survey\n"
        "survey.WORTH_PROCESSES = 0\n"
        "from offprincipal.cli import main\n"
        "main()\n"
        "print(sorted({'torch', 'numba'} & set(sys.modules)), file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120).stderr
    assert told.splitlines()[-1] == "[]", told
