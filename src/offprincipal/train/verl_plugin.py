"""What verl loads from the entry point group ``verl.plugins``: importing it registers the engine where it is wanted.

What it is: an effect of import, because verl loads plugins and calls nothing. What it is not: for anybody else.
"""

import logging

from offprincipal.errors import OffprincipalError
from offprincipal.train.verl import plugin

try:
    plugin()
except OffprincipalError as problem:
    logging.getLogger(__name__).error("%s", problem)  # verl keeps a plugin's failure to itself
    raise
