"""Writes a comparison folder that looks like a real one, at any number of layers and runs, without any checkpoint.

The counts are drawn so that they hang together: every overlap lies near its magnitude null, an RL-like run is sparse,
hardly turns its subspaces and keeps its spectrum, an SFT-like run does none of the three.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ALPHAS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
GRID_K = (16, 64, 128, 512)
MODULES = {
    "q": ("self_attn.q_proj", 1.0, 1.0), "k": ("self_attn.k_proj", 0.25, 1.0), "v": ("self_attn.v_proj", 0.25, 1.0),
    "o": ("self_attn.o_proj", 1.0, 1.0), "gate": ("mlp.gate_proj", 3.0, 1.0), "up": ("mlp.up_proj", 3.0, 1.0),
    "down": ("mlp.down_proj", 1.0, 3.0),
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """What a family of runs typically does: density, NSS, largest angle, kappa, overlap beyond magnitude."""

    density: float
    nss: float
    angle: float
    kappa: float
    excess: float
    relative: float


STYLES = {
    "rl": Style(density=0.34, nss=4e-5, angle=1.6, kappa=1.15, excess=-0.004, relative=1.2e-3),
    "sft": Style(density=0.93, nss=6e-3, angle=28.0, kappa=160.0, excess=0.002, relative=3.1e-2),
}
RUNS = (("grpo-math", "rl"), ("dapo-code", "rl"), ("sft-distilled", "sft"))


def write_comparison(
    directory: Path,
    *,
    layers: int = 36,
    runs: tuple[tuple[str, str], ...] = RUNS,
    hidden: int = 4096,
    seed: int = 0,
    geometry: bool = True,
    trajectory: bool = False,
    picture: bool = True,
    extra_name: str | None = None,
) -> Path:
    """Write the four files of a comparison of ``layers`` x ``runs`` into ``directory``.

    ``extra_name`` adds a tensor of that name to the first layer: the place for a hostile one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    curves = Curves()
    rows: list[dict] = []
    for label, style in runs:
        for name, layer, kind, shape in tensors(layers, hidden, extra_name):
            draw = generator(seed, label, name)
            row = plain_row(label, name, layer, kind, shape, STYLES[style], draw)
            if row["linear"]:
                add_low(row, draw)
                if geometry:
                    add_geometry(row, STYLES[style], draw)
                add_curves(curves, row, seed, draw, geometry)
            rows.append(row)
    pictures = {}
    if picture and geometry:
        for label, _ in runs:
            pictures[label] = add_picture(curves, rows, label, generator(seed, "picture"))
    columns = {key: None for row in rows for key in row}
    pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in columns}), directory / "tensors.parquet")
    pq.write_table(curves.table(), directory / "curves.parquet")
    summary = summarise(rows, runs, layers, hidden, pictures, trajectory)
    (directory / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    unpaired = [{"run": runs[0][0], "side": "tuned", "tensor": "model.vision.patch.weight", "shape": [1152, 588],
                 "reason": "no tensor of this name in the base"}]  # fmt: skip
    (directory / "unpaired.json").write_text(json.dumps(unpaired), encoding="utf-8")
    return directory


def generator(seed: int, *words: str) -> np.random.Generator:
    """A generator of its own for every (seed, words)."""
    return np.random.default_rng(int.from_bytes(sha256(repr((seed, *words)).encode()).digest()[:8], "little"))


def tensors(layers: int, hidden: int, extra_name: str | None):
    """(name, layer, kind, shape) of every tensor of a decoder with ``layers`` blocks."""
    yield "model.embed_tokens.weight", None, "embed", (hidden * 4, hidden)
    for layer in range(layers):
        for kind, (module, tall, wide) in MODULES.items():
            yield f"model.layers.{layer}.{module}.weight", layer, kind, (int(hidden * tall), int(hidden * wide))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", layer, "norm", (hidden, 1)
    if extra_name is not None:
        yield extra_name, 0, "q", (hidden, hidden)
    yield "model.norm.weight", None, "norm", (hidden, 1)
    yield "lm_head.weight", None, "head", (hidden * 4, hidden)


def plain_row(label, name, layer, kind, shape, style: Style, draw) -> dict:
    """The columns that every tensor has."""
    n = shape[0] * shape[1]
    wave = 0.0 if layer is None else 0.22 * np.sin(layer / 5) + {"o": -0.15, "v": 0.1, "down": -0.05}.get(kind, 0.0)
    density = float(np.clip(style.density * (1 + wave * (1 - style.density)) + draw.normal(0, 0.008), 0.0, 0.999))
    changed = round(n * density)
    base_sq = n * 4e-4
    relative = style.relative * (1 + 0.3 * wave)
    return {
        "run": label, "tensor": name, "kind": kind, "layer": layer, "expert": None,
        "linear": layer is not None and kind in MODULES, "out_features": shape[0], "in_features": shape[1],
        "base_dtype": "bfloat16", "tuned_dtype": "bfloat16", "counted": n, "changed": changed,
        "changed_bitwise": changed + 3, "changed_native": changed, "changed_atol": round(changed * 0.6),
        "nonfinite_base": 0, "nonfinite_tuned": 0, "base_sq": base_sq, "tuned_sq": base_sq * (1 + relative**2),
        "delta_sq": base_sq * relative**2, "delta_abs_sum": n * 1e-5, "delta_abs_max": 3e-3,
    }  # fmt: skip


def hypergeometric_variance(n: int, ones: int, changed: int) -> float:
    """Variance of the overlap count if the changed entries were placed at random."""
    return ones * (n - ones) * changed * (n - changed) / (n * n * (n - 1))


def add_low(row: dict, draw) -> None:
    """The low-magnitude mask at alpha 0.5: its magnitude null is the observation itself."""
    n, changed = row["counted"], row["changed"]
    ones, density = n // 2, changed / n
    low_changed = round(changed * (0.5 + 0.36 * (1 - density) + draw.normal(0, 0.004)))
    spread = hypergeometric_variance(n, ones, changed)
    row |= {"low_alpha": 0.5, "low_ones": ones, "low_changed": low_changed, "low_matched": float(low_changed),
            "low_matched_var": 0.0, "low_rounding": low_changed - 0.01 * changed,
            "low_rounding_var": spread}  # fmt: skip


def add_geometry(row: dict, style: Style, draw) -> None:
    """Principal masks, spectrum, angles and energies of a matrix."""
    n, changed = row["counted"], row["changed"]
    density = changed / n
    row |= {"principal_rank": 64, "principal_alpha": 0.5}
    for mask, share, pull in (("principal", 0.5, 0.19), ("principal_high", 0.34, 0.24), ("safe", 0.66, -0.24)):
        ones = round(n * share)
        matched = changed * (share - pull * (1 - density) * share)
        spread = hypergeometric_variance(n, ones, changed) * 0.7
        excess = style.excess * (-1 if mask == "safe" else 1) + draw.normal(0, 0.0012)
        row |= {f"{mask}_ones": ones, f"{mask}_changed": round(matched + excess * changed),
                f"{mask}_matched": matched, f"{mask}_matched_var": spread,
                f"{mask}_rounding": matched * 1.01, f"{mask}_rounding_var": spread * 1.1,
                f"{mask}_ties": 12}  # fmt: skip
    nss = style.nss * float(np.exp(draw.normal(0, 0.4)))
    longest = max(row["out_features"], row["in_features"])
    row |= {"spectrum_base_sq": row["base_sq"], "spectrum_shift_sq": row["base_sq"] * nss**2,
            "base_s1": 30.0, "tuned_s1": 30.0 * (1 + nss), "delta_s1": 0.4,
            "delta_entropy_rank": 800.0, "delta_rank_1e6": 900.0, "delta_rank_99": 700.0, "base_stable_rank": 41.0,
            "energy_rank": 64}  # fmt: skip
    row["delta_sq"] = row["spectrum_shift_sq"] * longest / (style.kappa * float(np.exp(draw.normal(0, 0.1))))
    for k in GRID_K:
        fits = k <= min(row["out_features"], row["in_features"]) // 2
        angle = style.angle * (k / 512) ** 0.5 * float(np.exp(draw.normal(0, 0.25)))
        row |= {f"angle_left_deg_{k}": min(angle, 90.0) if fits else None,
                f"angle_right_deg_{k}": min(0.9 * angle, 90.0) if fits else None,
                f"angle_gap_{k}": 1e-3 if fits else None,
                f"angle_meaningless_{k}": bool(draw.random() < 0.02) if fits else None}  # fmt: skip
    chance = {"left": 64 / row["out_features"], "right": 64 / row["in_features"]}
    chance["both"] = chance["left"] * chance["right"]
    for side, level in chance.items():
        lift = (1.1 if style.density < 0.5 else 6.0) * float(np.exp(draw.normal(0, 0.1)))
        row |= {f"energy_{side}_sq": min(level * lift, 0.9) * row["delta_sq"]}
        for null in ("gauss", "haar"):
            row |= {f"energy_{side}_{null}_mean": level, f"energy_{side}_{null}_sd": level * 0.02}


class Curves:
    """Collects long curves and hands them out as one Arrow table."""

    def __init__(self):
        self.words: dict[str, list] = {"run": [], "tensor": [], "curve": []}
        self.lengths: list[int] = []
        self.values: tuple[list, list] = ([], [])

    def add(self, run: str, tensor: str, curve: str, x, y) -> None:
        for key, word in zip(self.words, (run, tensor, curve), strict=True):
            self.words[key].append(word)
        self.lengths.append(len(x))
        self.values[0].append(np.asarray(x, float))
        self.values[1].append(np.asarray(y, float))

    def table(self) -> pa.Table:
        columns = {}
        for key, words in self.words.items():
            known = {word: i for i, word in enumerate(dict.fromkeys(words))}
            codes = np.repeat(np.array([known[word] for word in words], np.int32), self.lengths)
            columns[key] = pa.DictionaryArray.from_arrays(codes, pa.array(list(known), pa.string())).cast(pa.string())
        for key, parts in zip("xy", self.values, strict=True):
            columns[key] = np.concatenate(parts) if parts else np.zeros(0)
        return pa.table(columns)


def add_curves(curves: Curves, row: dict, seed: int, draw, geometry: bool) -> None:
    """Every curve of one matrix."""
    run, name, n, changed = row["run"], row["tensor"], row["counted"], row["changed"]
    alpha = np.array(ALPHAS)
    at_half = row["low_changed"] / max(changed, 1)
    low = changed * np.clip(alpha * at_half / 0.5 * (1 + 0.5 * (0.5 - alpha) * (1 - changed / n)), 0, 1)
    curves.add(run, name, "low_count", alpha, low)
    curves.add(run, name, "low_matched", alpha, low)
    curves.add(run, name, "low_rounding", alpha, low * 0.985)
    steps = np.arange(7)
    weight = np.exp(-0.5 * ((steps - (0.2 if changed < n / 2 else 3.0)) / 1.6) ** 2)
    curves.add(run, name, "ulps", 2.0**steps, changed * weight / weight.sum())
    for axis, size in (("row", row["out_features"]), ("col", row["in_features"])):
        bins = min(size, 512)
        stripes = generator(seed, "stripes", name, axis).gamma(6, 1 / 6, max(bins // 16, 1)).repeat(16)[:bins]
        stripes = np.pad(stripes, (0, bins - len(stripes)), mode="edge")
        strong = {("q", "row"), ("k", "row"), ("v", "row"), ("o", "col")}
        depth = 0.8 if (row["kind"], axis) in strong else 0.15
        density = np.clip(changed / n * (1 + depth * (stripes - 1) + draw.normal(0, 0.02, bins)), 0, 1)
        curves.add(run, name, f"{axis}_changed", np.arange(bins) * size // bins, density * n / bins)
    if geometry:
        add_geometry_curves(curves, row, seed, draw, alpha)


def add_geometry_curves(curves: Curves, row: dict, seed: int, draw, alpha) -> None:
    run, name, changed = row["run"], row["tensor"], row["changed"]
    share = row["principal_changed"] / max(changed, 1)
    observed = changed * alpha * share / 0.5
    matched = changed * alpha * row["principal_matched"] / max(changed, 1) / 0.5
    curves.add(run, name, "principal_count", alpha, observed)
    curves.add(run, name, "principal_matched", alpha, matched)
    curves.add(run, name, "principal_rounding", alpha, matched * 1.01)
    short = min(row["out_features"], row["in_features"])
    k = np.unique(np.geomspace(1, short, 256).round())
    base = 30 * k**-0.45 * np.exp(-k / short) * (1 + 0.02 * generator(seed, name).normal(size=k.size).cumsum() / 16)
    nss = np.sqrt(row["spectrum_shift_sq"] / row["spectrum_base_sq"])
    curves.add(run, name, "spectrum_base", k, base)
    curves.add(run, name, "spectrum_tuned", k, base * (1 + nss * (0.8 + 0.4 * draw.normal(size=k.size))))
    i = np.arange(1, min(512, short // 2) + 1)
    largest = row[f"angle_left_deg_{max(g for g in GRID_K if g <= max(short // 2, 16))}"] or 0.1
    for side, turn in (("left", 1.0), ("right", 0.9)):
        curves.add(run, name, f"angles_{side}", i, largest * turn * (i / i[-1]) ** 1.7)


def add_picture(curves: Curves, rows: list[dict], label: str, draw) -> dict:
    """A 64 x 64 picture of the update mask and of the principal mask of one matrix."""
    row = next(r for r in rows if r["run"] == label and r["kind"] == "o")
    side = 64
    cross = np.add.outer(draw.gamma(3, 1 / 3, side), draw.gamma(3, 1 / 3, side)) / 2
    principal = np.clip(0.5 * cross, 0, 1)
    update = np.clip(row["changed"] / row["counted"] * (1.5 - 0.5 * cross), 0, 1)
    for curve, values in (("mask_update", update), ("mask_principal", principal)):
        curves.add(label, row["tensor"], curve, np.arange(side * side), values.ravel())
    return {"tensor": row["tensor"], "rows": side, "cols": side}


def mean(values) -> float | None:
    kept = [v for v in values if v is not None]
    return float(np.mean(kept)) if kept else None


def run_summary(rows: list[dict], picture: dict | None) -> dict:
    """The model-level numbers of one run, by plain loops: an independent check on the page."""
    linear = [r for r in rows if r["linear"] and r["changed"]]
    shaped = [r for r in linear if "principal_ones" in r]
    counted, changed = sum(r["counted"] for r in rows), sum(r["changed"] for r in rows)
    nss = [(r["spectrum_shift_sq"] / r["spectrum_base_sq"]) ** 0.5 for r in shaped]
    residual = [(r["spectrum_shift_sq"] / r["delta_sq"]) ** 0.5 for r in shaped]
    excess = [r["principal_changed"] - r["principal_matched"] for r in shaped]
    spread = [r["principal_matched_var"] for r in shaped]
    return {
        "label": rows[0]["run"], "ref": f"example/{rows[0]['run']}", "commit": "4f2a" * 10,
        "changed": changed, "counted": counted, "sparsity_bf16": 1 - changed / counted,
        "sparsity_bf16_linear": 1 - sum(r["changed"] for r in linear) / sum(r["counted"] for r in linear),
        "sparsity_native": 1 - changed / counted,
        "sparsity_atol_1e-5": 1 - sum(r["changed_atol"] for r in rows) / counted,
        "delta_norm": sum(r["delta_sq"] for r in rows) ** 0.5,
        "relative_delta_norm": (sum(r["delta_sq"] for r in rows) / sum(r["base_sq"] for r in rows)) ** 0.5,
        "nss_mean": mean(nss), "nss_max": max(nss, default=None),
        "angle_max_deg": {str(k): max((r[f"angle_left_deg_{k}"] or 0.0 for r in shaped), default=None)
                          for k in GRID_K},
        "spectral_residual_mean": mean(residual),
        "kappa_spec_mean": mean([s**2 * max(r["out_features"], r["in_features"])
                                 for s, r in zip(residual, shaped, strict=True)]),
        "overlap_low": mean([r["low_changed"] / r["changed"] for r in linear]),
        "overlap_principal": mean([r["principal_changed"] / r["changed"] for r in shaped]),
        "overlap_principal_matched": mean([r["principal_matched"] / r["changed"] for r in shaped]),
        "overlap_principal_excess_z": sum(excess) / sum(spread) ** 0.5 if shaped else None,
        "energy_principal_lift": 1.1 if shaped else None, "mask_picture": picture,
    }  # fmt: skip


def summarise(rows, runs, layers, hidden, pictures, trajectory) -> dict:
    labels = [label for label, _ in runs]
    summary = {
        "schema_version": 1, "base": {"ref": "example/base-8b", "commit": "9b1e" * 10, "dtypes": ["bfloat16"]},
        "definitions": {"principal_rank": 64, "principal_alpha": 0.5, "low_alpha": 0.5, "rounding_draws": 20},
        "seed": 0, "command": "offprincipal compare example/base-8b " + " ".join(f"example/{x}" for x in labels),
        "versions": {"offprincipal": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"}, "unpaired_count": 1,
        "runs": [run_summary([r for r in rows if r["run"] == x], pictures.get(x)) for x in labels],
    }  # fmt: skip
    if len(labels) > 1:
        summary["consensus"] = consensus(summary["runs"])
    if trajectory:
        summary["trajectory"] = [
            {"label": f"step_{100 * (i + 1)}", "density": 0.34 * (1 - np.exp(-(i + 1) / 3)),
             "jaccard_end": 0.55 + 0.45 * i / 7, "nss_mean": 5e-6 * (i + 1), "angle_max_deg": 0.2 * (i + 1)}
            for i in range(8)
        ]  # fmt: skip
    return summary


def consensus(runs: list[dict]) -> dict:
    """Pairwise agreement: Bernoulli from the densities, a little more from magnitude, a little more observed."""
    pairs = []
    for i, one in enumerate(runs):
        for other in runs[i + 1 :]:
            p, q = 1 - one["sparsity_bf16"], 1 - other["sparsity_bf16"]
            chance = p * q / (p + q - p * q)
            pairs.append({"a": one["label"], "b": other["label"], "jaccard": chance * 1.32,
                          "jaccard_bernoulli": chance, "jaccard_matched": chance * 1.28, "z": 87.0})  # fmt: skip
    keys = ("jaccard", "jaccard_bernoulli", "jaccard_matched")
    weights = sum(run["counted"] for run in runs) // len(runs)
    share = np.array([0.32, 0.41, 0.17, 0.1] if len(runs) == 3 else np.full(len(runs) + 1, 1 / (len(runs) + 1)))
    return {key: mean([p[key] for p in pairs]) for key in keys} | {
        "pairs": pairs,
        "histogram": [round(s * weights) for s in share],
        "histogram_matched": [float(s * weights) for s in np.roll(share, 1)],
    }
