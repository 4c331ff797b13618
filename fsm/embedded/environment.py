"""The environment variables of a server's processes."""

from __future__ import annotations

import os
from pathlib import Path


def environment(bin_dir: Path) -> dict[str, str]:
    """What a server's process sees: nothing that changes its defaults, and its own libraries."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PG") and not name.startswith("LC_") and name != "LANG"
    }
    # Without its own libpq first, a standby quietly uses the system's.
    own = str(bin_dir.parent / "lib")
    inherited = os.environ.get("LD_LIBRARY_PATH")
    path = f"{own}:{inherited}" if inherited else own
    return {**kept, "LD_LIBRARY_PATH": path, "LC_ALL": "C", "TZ": "UTC"}
