"""A reference, its header, one tensor at a time; disk or Hub. A checkpoint is data: safetensors only, no pickle.

``_open.py`` is where to begin: a reference becomes a listing (``_folder.py``, ``_hub.py``), a listing becomes headers
(``_listing.py``, ``_header.py``), headers become sources that read rows (``_source.py``, ``_adapter.py``).
"""

from offprincipal.checkpoint._checkpoint import Checkpoint
from offprincipal.checkpoint._describe import Description, Row, Total, describe
from offprincipal.checkpoint._header import DTYPES, FLOATS, TensorInfo
from offprincipal.checkpoint._open import open_checkpoint
from offprincipal.checkpoint._source import Source

__all__ = [
    "DTYPES",
    "FLOATS",
    "Checkpoint",
    "Description",
    "Row",
    "Source",
    "TensorInfo",
    "Total",
    "describe",
    "open_checkpoint",
]
