"""The gates measured on a model and prompts: KL (Gate I), curvature (Gate II), Fisher form against KL.

What it is: two checkpoints, some text, and numbers with intervals. What it is not: a benchmark of what a model can do,
or anything about the weights alone (``offprincipal.survey``). Needs the extra ``hf``. Begin with ``kl.py``.
"""
