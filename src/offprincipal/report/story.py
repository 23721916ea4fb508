"""Tables to sentences: what each run did to the weights, with effect sizes and nulls, as data for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from offprincipal.report import numbers
from offprincipal.report.numbers import MASKS, Overlap
from offprincipal.report.reading import Comparison, Rows
from offprincipal.report.words import NONE, count, percent, plain, points, scientific


@dataclass(frozen=True)
class Sign:
    """One stated threshold: a number below or above which a run looks like RL, or like SFT, in the published runs."""

    name: str
    rl: float
    sft: float
    why: str

    def vote(self, value: float | None) -> str:
        """``"RL-like"``, ``"SFT-like"``, ``"between"``, or ``"not measured"``.

        >>> Sign("NSS", rl=3e-4, sft=1e-3, why="").vote(5e-5), Sign("sparsity", rl=0.36, sft=0.188, why="").vote(0.1)
        ('RL-like', 'SFT-like')
        """
        if value is None or math.isnan(value):
            return "not measured"
        small = self.rl < self.sft
        if value <= self.rl if small else value >= self.rl:
            return "RL-like"
        return "SFT-like" if (value >= self.sft if small else value <= self.sft) else "between"


# The first from arXiv 2511.08567 Table 1; NSS and angles are readings of its figures, rounded outwards by us; the last
# from arXiv 2607.19331, with wide margins of ours.
SIGNS = {
    "sparsity": Sign("Sparsity (bf16, all weights)", 0.36, 0.188, "published: RL 36 to 92 %, SFT 0.6 to 18.8 %"),
    "nss": Sign("Spectrum moved (NSS, mean)", 3e-4, 1e-3, "published figures: RL 10⁻⁵ to 10⁻⁴, SFT 10⁻³ to 10⁻¹"),
    "angle": Sign("Largest angle (mean over matrices)", 5.0, 10.0, "published figures: RL 0.1 to 5°, SFT 10 to 50°"),
    "kappa": Sign("κ_spec (mean)", 3.0, 30.0, "published: RL 1.0 to 1.4 (isotropic noise: 1), SFT 89 to 1364"),
}
SHOWN = {"sparsity": percent, "nss": scientific, "angle": lambda v: plain(v) + "°", "kappa": plain}
LIMIT = {"sparsity": percent, "nss": lambda v: scientific(v, 0), "angle": "{:g}°".format, "kappa": "{:g}".format}


@dataclass(frozen=True)
class RunStory:
    """What the page says about one run.

    ``paragraphs`` holds (lead word, sentences); ``signs`` (name, measured, RL-like if, SFT-like if, vote, source).
    """

    label: str
    ref: str
    verdict: str
    paragraphs: tuple[tuple[str, str], ...]
    signs: tuple[tuple[str, ...], ...]
    overlaps: tuple[Overlap, ...]
    values: Mapping[str, float]


def stories(comparison: Comparison) -> tuple[RunStory, ...]:
    """One story per run, in the order of the summary."""
    return tuple(_story(comparison, run) for run in comparison.runs)


def _story(comparison: Comparison, run: Mapping[str, Any]) -> RunStory:
    rows, linear = comparison.rows_of(run["label"]), comparison.linear(run["label"])
    values = run_values(run, rows)
    found = tuple(o for o in (numbers.overlap(linear, rows, mask) for mask in MASKS) if o is not None)
    verdict, headline = resemblance(values)
    by_mask = {o.mask: o for o in found}
    told = (
        ("How much.", _amount(values)),
        ("Where.", _principal(by_mask.get("principal"), rows) + _low(by_mask.get("low"))),
        ("Geometry.", _spectrum(values)),
        ("Resemblance.", [headline]),
    )
    paragraphs = tuple((lead, " ".join(sentences)) for lead, sentences in told if sentences)
    return RunStory(run["label"], _ref(run), verdict, paragraphs, _signs(values), found, values)


def run_values(run: Mapping[str, Any], rows: Rows) -> dict[str, float]:
    """The model-level numbers: the summary's own where it has them, else from the rows, with the same weighting."""
    linear = rows.where(rows.number("linear") > 0)
    each = numbers.per_tensor(linear)
    k = numbers.headline_k(rows)
    angles = numbers.angle(linear, k)

    def told(key: str, otherwise: float) -> float:
        value = run.get(key)
        return float(value) if isinstance(value, int | float) else otherwise

    changed, counted = np.nansum(rows.number("changed")), np.nansum(rows.number("counted"))
    relative = math.sqrt(np.nansum(rows.number("delta_sq")) / max(np.nansum(rows.number("base_sq")), 1e-300))
    residual = np.sqrt(numbers.divided(rows.number("spectrum_shift_sq"), rows.number("delta_sq")))
    return {
        "changed": told("changed", float(changed)),
        "counted": told("counted", float(counted)),
        "sparsity": told("sparsity_bf16", float(1 - changed / counted) if counted else math.nan),
        "sparsity_linear": told("sparsity_bf16_linear", math.nan),
        "sparsity_native": told("sparsity_native", math.nan),
        "sparsity_atol": told("sparsity_atol_1e-5", math.nan),
        "relative": told("relative_delta_norm", relative),
        "delta_norm": told("delta_norm", math.nan),
        "nss": told("nss_mean", numbers.mean(each["nss"])),
        "nss_max": told("nss_max", float(np.nanmax(each["nss"])) if rows.has("spectrum_shift_sq") else math.nan),
        "residual": told("spectral_residual_mean", numbers.mean(residual)),
        "kappa": told("kappa_spec_mean", numbers.mean(each["kappa"])),
        "k": math.nan if k is None else float(k),
        "angle": numbers.mean(angles),
        "angle_max": float(np.nanmax(angles)) if np.isfinite(angles).any() else math.nan,
        "closed_gaps": float(np.nansum(linear.number(f"angle_meaningless_{k}"))),
        "matrices": float(linear.length),
        "energy_lift": told("energy_principal_lift", math.nan),
        "energy_both": numbers.mean(numbers.divided(linear.number("energy_both_sq"), linear.number("delta_sq"))),
        "energy_gauss": numbers.mean(linear.number("energy_both_gauss_mean")),
        "energy_haar": numbers.mean(linear.number("energy_both_haar_mean")),
    }


def resemblance(values: Mapping[str, float]) -> tuple[str, str]:
    """("RL-like" | "SFT-like" | "mixed" | "undecided", the sentence that says why). A resemblance, never a proof."""
    votes = [sign.vote(values[key]) for key, sign in SIGNS.items()]
    measured = sum(v != "not measured" for v in votes)
    rl, sft = votes.count("RL-like"), votes.count("SFT-like")
    tally = f"{rl} of {measured} measured signs RL-like, {sft} SFT-like"
    if measured < 2 or rl + sft == 0:
        return "undecided", f"Too little was measured, or too little was clear, to say what this resembles ({tally})."
    if rl and sft:
        return "mixed", f"The signs disagree ({tally}), so this resembles neither."
    word = "RL-like" if rl else "SFT-like"
    if max(rl, sft) * 2 < measured:
        return "undecided", f"Most signs lie between the published ranges ({tally})."
    return word, f"On the thresholds stated below it resembles published {word.removesuffix('-like')} runs: {tally}."


def _amount(v: Mapping[str, float]) -> list[str]:
    moved = 1 - v["sparsity"]
    text = (f"It changed {percent(moved)} of the {count(v['counted'])} weights that both sides store: "
            f"a sparsity of {percent(v['sparsity'])} in bfloat16.")  # fmt: skip
    if v["changed"] == 0:
        return [text + " As stored, base and tuned are the same model."]
    return [
        text,
        f"The update is {percent(v['relative'], 2)} as long as the weights themselves (‖D‖ / ‖W₀‖, Frobenius).",
    ]


def _principal(o: Overlap | None, rows: Rows) -> list[str]:
    if o is None:
        return ["Principal masks were not measured, so nothing is said about off-principal bias."]
    rank, alpha = rows.number("principal_rank"), rows.number("principal_alpha")
    mask = "principal mask"
    if np.isfinite(rank).any():
        share = percent(float(np.nanmax(alpha)), 0)
        mask = f"principal mask (rank {np.nanmax(rank):.0f}, the largest {share} of entries)"
    side = "off-principal" if o.bias < 0 else "on-principal"
    told = [f"{percent(o.observed)} of the changed weights lie in the {mask}, where chance puts {percent(o.chance)}: "
            f"an {side} bias of {points(o.bias, 1)} points."]  # fmt: skip
    told.append(_explained(o, side))
    over = (
        "" if math.isnan(o.low) else f"95 % interval over {o.matrices} matrices {points(o.low)} to {points(o.high)}; "
    )
    beyond = f"Beyond magnitude there remain {points(o.excess)} points ({over}z = {plain(o.z)})"
    told.append(f"{beyond}, {judged(o)}.")
    if o.feasible[1] - o.feasible[0] < 0.25:
        told.append(f"So dense an update can only show an overlap between {percent(o.feasible[0])} and "
                    f"{percent(o.feasible[1])}, wherever it aims: read it with care.")  # fmt: skip
    return told


def _explained(o: Overlap, side: str) -> str:
    null = f"The magnitude of the base weights alone, with no geometry at all, would give {percent(o.magnitude)}"
    share = o.explained
    if math.isnan(share):
        return f"{null}; there is no bias to explain."
    if share < 0:
        return f"{null}, a bias the other way: magnitude explains none of it."
    if share > 1.02:
        return f"{null}, more {side} than observed: magnitude explains all of the bias and more ({percent(share, 0)})."
    return f"{null}: that explains {percent(min(share, 1.0), 0)} of the bias."


def judged(o: Overlap) -> str:
    """What an excess is worth in words: by its interval first, then by its size. The half point is ours."""
    if not math.isnan(o.low) and o.low <= 0 <= o.high:
        return "not distinguishable from zero over matrices"
    side = "fewer principal weights" if o.excess < 0 else "more principal weights"
    if abs(o.excess) < 0.005:
        return f"{side} than magnitude predicts, by less than half a point: clear in the statistics, small in size"
    return f"{side} than magnitude predicts: a rest that magnitude does not explain"


def _low(o: Overlap | None) -> list[str]:
    if o is None:
        return []
    null = "" if math.isnan(o.rounding) else f" (rounding alone: {percent(o.rounding)}, z = {plain(o.z_rounding)})"
    return [f"{percent(o.observed)} of the changes fall on the {percent(o.chance, 0)} smallest weights{null}."]


def _spectrum(v: Mapping[str, float]) -> list[str]:
    if math.isnan(v["nss"]):
        return ["Spectra and subspaces were not measured."]
    told = [f"Singular values moved by NSS = {scientific(v['nss'])} on average (at most {scientific(v['nss_max'])}), "
            f"κ_spec = {plain(v['kappa'])}, where isotropic noise of the same length gives about 1."]  # fmt: skip
    if not math.isnan(v["angle"]):
        closed = f" ({v['closed_gaps']:.0f} with a closed gap left out)" if v["closed_gaps"] else ""
        told.append(f"The top-{v['k']:.0f} subspaces turned by at most {plain(v['angle'])}° in the average matrix, "
                    f"{plain(v['angle_max'])}° in the worst matrix{closed}.")  # fmt: skip
    return told


def _signs(values: Mapping[str, float]) -> tuple[tuple[str, ...], ...]:
    lines = []
    for key, sign in SIGNS.items():
        shown, (low, high) = SHOWN[key], ("≤", "≥") if sign.rl < sign.sft else ("≥", "≤")
        value = NONE if math.isnan(values[key]) else shown(values[key])
        lines.append((sign.name, value, f"{low} {LIMIT[key](sign.rl)}", f"{high} {LIMIT[key](sign.sft)}",
                      sign.vote(values[key]), sign.why))  # fmt: skip
    return tuple(lines)


def _ref(run: Mapping[str, Any]) -> str:
    commit = run.get("commit")
    return f"{run.get('ref', '')}" + (f"@{str(commit)[:12]}" if commit else "")


def glance(told: tuple[RunStory, ...]) -> list[tuple[str, str, list[str]]]:
    """The table of all model-level numbers: (name, how it is weighted, one value per run), without empty rows."""
    k = next((f"{s.values['k']:.0f}" for s in told if not math.isnan(s.values["k"])), "")
    wanted = [
        ("Weights changed", "bf16, all tensors", "changed", count),
        ("Sparsity, all", "bf16, by parameter count", "sparsity", percent),
        ("Sparsity, linear", "2-D weights inside blocks", "sparsity_linear", percent),
        ("Sparsity, native", "stored dtypes as they are", "sparsity_native", percent),
        ("Sparsity, atol 10⁻⁵", "the older rule", "sparsity_atol", percent),
        ("‖D‖", "Frobenius, all tensors", "delta_norm", plain),
        ("‖D‖ / ‖W₀‖", "Frobenius, all tensors", "relative", lambda v: percent(v, 3)),
        ("NSS, mean", "unweighted over matrices", "nss", scientific),
        ("NSS, largest", "", "nss_max", scientific),
        ("Spectral residual", "unweighted over matrices", "residual", percent),
        ("κ_spec", "unweighted; noise ≈ 1", "kappa", plain),
        (f"Largest angle, k = {k}", "unweighted, degrees", "angle", plain),
        (f"Worst angle, k = {k}", "degrees", "angle_max", plain),
        ("Energy in both subspaces", "‖UᵀDV‖² / ‖D‖², unweighted", "energy_both", lambda v: percent(v, 3)),
        ("… N-gauss", "Gaussian D of equal norm", "energy_gauss", lambda v: percent(v, 3)),
        ("… N-haar", "same spectrum, random directions", "energy_haar", lambda v: percent(v, 3)),
    ]  # fmt: skip
    lines = []
    for name, weighting, key, shown in wanted:
        if any(not math.isnan(s.values[key]) for s in told):
            lines.append((name, weighting, [shown(s.values[key]) for s in told]))
    return lines
