"""Masks as files: build them from a base, load them one by one, combine and compare them.

What it is: which weights an optimizer may write, or which a run has changed, one bit per weight, beside the rule, the
base and its content. What it is not: the choice of a mask for one matrix (``measures.masks``), or its use in training.

``_build.py`` is where to begin: a base becomes jobs, jobs become masks (``_rules.py``), masks wait in a draft
(``_draft.py``) and become a set (``_maskset.py``, ``_files.py``). ``_combine.py``,
``_overlap.py`` and ``_mapback.py`` read sets.
"""

from offprincipal.masksets._build import build_masks
from offprincipal.masksets._combine import OPERATIONS, combine, consensus
from offprincipal.masksets._files import SCHEMA_VERSION
from offprincipal.masksets._mapback import map_back
from offprincipal.masksets._maskset import MaskSet
from offprincipal.masksets._overlap import Overlap, overlap
from offprincipal.masksets._rules import KINDS
from offprincipal.masksets._save import save_masks
from offprincipal.masksets._show import densities

__all__ = [
    "KINDS",
    "OPERATIONS",
    "SCHEMA_VERSION",
    "MaskSet",
    "Overlap",
    "build_masks",
    "combine",
    "consensus",
    "densities",
    "map_back",
    "overlap",
    "save_masks",
]
