"""A reference, its header, one tensor at a time; disk or Hub. A checkpoint is data: safetensors only, no pickle.

``_open.py`` is where to begin: a reference becomes a listing (``_folder.py``, ``_hub.py``), a listing becomes headers
(``_listing.py``, ``_header.py``), headers become sources that read rows (``_source.py``, ``_adapter.py``).
"""

from offprincipal.checkpoint._adapter import Adapted, check_adapter, scaling
from offprincipal.checkpoint._checkpoint import Checkpoint
from offprincipal.checkpoint._describe import Description, Row, Total, describe
from offprincipal.checkpoint._folder import Folder
from offprincipal.checkpoint._header import DTYPES, FLOATS, TensorInfo, parse_json, read_header
from offprincipal.checkpoint._listing import Listing, read_tensors
from offprincipal.checkpoint._open import open_checkpoint
from offprincipal.checkpoint._source import HUB_SCHEME, Source, Stored, columns_of, read_whole, rows_of

__all__ = [
    "DTYPES",
    "FLOATS",
    "HUB_SCHEME",
    "Adapted",
    "Checkpoint",
    "Description",
    "Folder",
    "Listing",
    "Row",
    "Source",
    "Stored",
    "TensorInfo",
    "Total",
    "check_adapter",
    "columns_of",
    "describe",
    "open_checkpoint",
    "parse_json",
    "read_header",
    "read_tensors",
    "read_whole",
    "rows_of",
    "scaling",
]
