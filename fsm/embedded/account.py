"""As whom a server runs: Postgres refuses root."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fsm.embedded.environment import environment
from fsm.errors import BadInput


@dataclass(frozen=True)
class Account:
    """As whom a server runs: Postgres refuses root."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None

    @property
    def extra_groups(self) -> tuple[()] | None:
        """Root's other groups are not handed on."""
        return None if self.uid is None else ()

    def give(self, folder: Path) -> None:
        """Make everything in the folder the account's own."""
        if self.uid is None or self.gid is None:
            return
        for path in (folder, *folder.rglob("*")):
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def can_run(self, bin_dir: Path) -> bool:
        """May the account execute the binaries where they are?"""
        if self.uid is None:
            return True
        try:
            subprocess.run(  # noqa: S603 - the path comes from find_binaries
                [str(bin_dir / "postgres"), "--version"],
                env=environment(bin_dir),
                cwd="/",
                capture_output=True,
                check=True,
                user=self.uid,
                group=self.gid,
                extra_groups=self.extra_groups,
            )
        except (OSError, subprocess.CalledProcessError):
            return False
        return True


@functools.cache
def current() -> Account:
    """An ordinary user runs it as himself; root as uid 1000 of a user namespace, or as nobody."""
    if os.geteuid() != 0:
        return Account()
    namespace = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
    with contextlib.suppress(OSError):
        if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode == 0:  # noqa: S603 - our own command line
            return Account(namespace)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account((), entry.pw_uid, entry.pw_gid)
    raise BadInput("Postgres does not run as root, and there is no user 'nobody': use another user")
