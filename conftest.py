"""Before anything is imported: check every annotated shape of the measures while the tests run."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from jaxtyping import install_import_hook

# private modules hold compiled loops, which a run-time check cannot wrap
MEASURES = Path(__file__).parent / "src" / "offprincipal" / "measures"
install_import_hook([f"offprincipal.measures.{file.stem}" for file in MEASURES.glob("[!_]*.py")], "beartype.beartype")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# caches of the tests are their own, and gone with them; huggingface_hub reads the variable when it is imported
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="offprincipal-tests-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
