"""A certificate for servers of tests that speak TLS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost and its key, signed by itself: their files in ``folder``."""
    openssl = shutil.which("openssl")
    assert openssl is not None, "tests under TLS make a certificate with the command openssl"
    certificate, key = folder / "server.crt", folder / "server.key"
    request = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    subprocess.run(
        [openssl, *request, "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    return certificate, key
