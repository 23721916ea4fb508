"""The claims, in the paper's order and near its words, with where it makes them.

"The Path Not Taken", arXiv 2511.08567. *Not in the paper* marks controls that the paper lacks.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One claim: its id, what the paper says, and where."""

    id: str
    says: str
    where: str


GROUPS = {
    "P": "Numerics, Gate III",
    "S": "Sparsity",
    "L": "Locality",
    "G": "Gate I",
    "T": "Bounds",
    "D": "Gate II: spectra and subspaces",
    "A": "Mask alignment",
    "I": "Interventions",
    "F": "Learning algorithms",
    "X": "Other settings",
}

CLAIMS = tuple(
    Claim(*line)
    for line in (
        ("P1", "The test |w' - w| <= 1e-3 max(|w|, |w'|) is bitwise equality of bfloat16", "E.3, E.4"),
        ("P2", "Different bfloat16 values differ by more than 2^-8, relative", "Lemma E.1"),
        ("P3", "ULP / |x| lies in (2^-8, 2^-7]", "Lemma E.2"),
        ("P4", "An absolute tolerance of 1e-5 fails both ways", "E.1"),
        ("P5", "A weight flips when the step reaches half an ULP", "Cor. 3.6"),
        ("P6", "A larger weight needs a larger step to change", "Cor. 3.6"),
        ("P7", "A higher learning rate removes sparsity", "2.3"),
        ("P8", "float32 removes sparsity", "cited in 2.3"),
        ("P9", "Sparsity is not precision alone", "2.3"),
        ("P10", "Sparsities by an absolute tolerance are biased", "E.1"),
        ("S1", "RL is far sparser than SFT", "Table 1"),
        ("S1 public", "RL is far sparser than SFT, on the fifteen public pairs", "Table 1"),
        ("S2", "Long RL is denser", "Table 1"),
        ("S3", "Recent checkpoints are less sparse than was reported before", "2.1"),
        ("L1", "Different RL runs share a footprint", "Table 2"),
        ("L2", "The shared footprint goes beyond magnitude gating", "not in the paper"),
        ("L3", "Changes form stripes: rows in Q, K, V and columns in O", "Fig. 2"),
        ("L4", "The stripes are stable in time", "Figs 3, 14"),
        ("L5", "Stripes lie within heads as well as across them", "Fig. 3"),
        ("L6", "Stripes are generic across model families", "Fig. 13"),
        ("L7", "The footprint is invariant to data and RL algorithm", "Table 2"),
        ("G1", "KL = half the Fisher form, up to third order", "F.5"),
        ("G2", "One-step leash: D(pi+ || pi) <= (1 + o(1)) D(q~ || pi)", "Prop. 3.1"),
        ("G3", "The leash bounds the weights: ||D|| <= sqrt(2 K / mu) (1 + o(1))", "Prop. 3.2"),
        ("G4", "||H - F|| <= L sqrt(2 D)", "F.6"),
        ("G5", "Clipping alone is a leash of order epsilon", "Lemma F.9"),
        ("G6", "KL stays small without a KL penalty", "Fig. 15"),
        ("G7", "Weights move little: the net change is far below steps times learning rate", "3.1"),
        ("G8", "RL is on a tighter leash than SFT", "3.1"),
        ("T1", "sin Theta <= ||D|| / gap", "Thm 3.3"),
        ("T2", "Singular values move by at most ||D||", "Cor. 3.4"),
        ("T3", "Ky Fan norms move by at most k ||D||", "Cor. 3.5"),
        ("T4", "||P0 - P+|| = ||sin Theta||", "Cor. F.13"),
        ("D1", "RL turns the principal subspaces little, SFT much", "Figs 4, 16, 17"),
        ("D2", "RL moves the spectrum far less than SFT", "Figs 4, 16, 17"),
        ("D3", "Singular value curves stay nearly identical under RL", "Fig. 4"),
        ("D4", "The same at matched task performance", "Fig. 17"),
        ("D5", "RL moves the spectrum less than its small norm explains", "not in the paper"),
        ("D6", "RL updates are off-principal in subspace", "4.1, title"),
        ("D7", "Principal directions are those of high curvature", "3.2, after LIFT"),
        ("A1", "RL avoids the principal weights", "Fig. 5"),
        ("A2", "RL prefers the small weights", "Fig. 5"),
        ("A3", "What RL avoids is principal and not small", "Fig. 5"),
        ("A4", "SFT targets the principal weights", "Fig. 1"),
        ("A5", "Avoidance goes beyond magnitude", "not in the paper"),
        ("A6", "RL and SFT change disjoint regions", "4.2"),
        ("I1", "Rotating and permuting a block preserves the function", "Prop. D.1"),
        ("I2", "The overlap collapses only where a block was rotated or permuted", "Fig. 6"),
        ("I3", "Mapped back, the overlap returns: the collapse is a change of coordinates", "not in the paper"),
        ("I4", "The spectrum of a rotated block is unchanged", "4.3"),
        ("F1", "The safe mask trains as well as dense training", "Tables 4, 5"),
        ("F2", "Training only principal weights is worst", "Tables 4, 5"),
        ("F3", "At equal size, non-principal weights beat principal ones", "Tables 4, 5"),
        ("F4", "A random mask of the safe mask's density is worse than it", "Tables 4, 5"),
        ("F5", "The low-magnitude mask alone is as good as dense", "Tables 4, 5"),
        ("F6", "PiSSA gains nothing over LoRA", "Figs 10, 11"),
        ("F7", "LoRA updates are off-principal, PiSSA's on-principal", "5.2"),
        ("F8", "LoRA of rank 1 suffices", "5.2"),
        ("X1", "Tool use and agents keep the signature", "Figs 7, 8"),
        ("X2", "Preference training keeps the signature", "Fig. 18"),
        ("X3", "Mixtures of experts keep the signature", "Table 1"),
    )
)  # fmt: skip

BY_ID = {claim.id: claim for claim in CLAIMS}
