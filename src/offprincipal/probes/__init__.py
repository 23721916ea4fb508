"""The gates measured on a model and prompts: KL (Gate I), curvature (Gate II), the Fisher form against the KL.

What it is: two checkpoints, some text, and numbers with intervals. What it is not: a benchmark of what a model can do,
or anything about the weights alone (``offprincipal.survey``). Needs the extra ``hf``. ``kl.py`` is where to begin:
``models.py`` and ``texts.py`` are what it stands on; ``forms.py`` holds the derivatives that the other two need.
"""

from offprincipal.probes.curvature import measure_curvature
from offprincipal.probes.fisher import measure_fisher
from offprincipal.probes.kl import measure_kl

__all__ = ["measure_curvature", "measure_fisher", "measure_kl"]
