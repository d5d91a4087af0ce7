"""Use the kernels that are built for the sanitizers instead of the installed ones: `-p tests.kernels.sanitized`.

NEARCAST_SANITIZED names their folder. Imported before nearcast.kernels; `make sanitize` does all that. Properties are
tried on fewer examples, since each takes several times as long; the fuzz takes their place.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from tests.property_examples import limit_examples

EXAMPLES = 6
FOLDER = os.environ.get("NEARCAST_SANITIZED")


def use_sanitized() -> None:
    """Put the module in place of the installed one; do nothing where no folder is named."""
    if not FOLDER:
        return
    (path,) = Path(FOLDER).glob("_native*.so")
    spec = importlib.util.spec_from_file_location("nearcast.kernels._native", path)
    assert spec is not None
    assert spec.loader is not None
    assert "nearcast.kernels.isa" not in sys.modules
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    print(f"kernels: {path}", flush=True)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Limit the examples of a property."""
    limit_examples(items, EXAMPLES)


use_sanitized()
