"""Adapters that are plain LoRA everywhere: begun by method, held to it in training, exported, verified.

What it is: PEFT folders on the *original* base that add exactly zero at the start. What it is not: another PEFT. At
inference nothing of this package is needed, and no method of it changes the base.
``_starts.py`` holds the formulas, ``_init.py`` writes a folder, ``_hold.py`` keeps it to its method in training,
``_export.py`` and ``_verify.py`` end it.
"""

from offprincipal.train.adapters._drift import Drift, MergeDrift
from offprincipal.train.adapters._export import Exported, export_adapter
from offprincipal.train.adapters._hold import Held, hold, hold_callback
from offprincipal.train.adapters._init import Made, init_adapter
from offprincipal.train.adapters._recipe import DOUBLED, METHODS
from offprincipal.train.adapters._targets import Module, Targets, choose, on_this_machine
from offprincipal.train.adapters._verify import Verified, verify_adapter

__all__ = [
    "DOUBLED",
    "METHODS",
    "Drift",
    "Exported",
    "Held",
    "Made",
    "MergeDrift",
    "Module",
    "Targets",
    "Verified",
    "choose",
    "export_adapter",
    "hold",
    "hold_callback",
    "init_adapter",
    "on_this_machine",
    "verify_adapter",
]
