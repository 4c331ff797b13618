"""A cluster: the data directory that initdb makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fsm.embedded import account
from fsm.embedded.environment import environment
from fsm.embedded.errors import EmbeddedError


def make_cluster(bin_dir: Path, data: Path) -> None:
    """Run initdb: superuser ``postgres``, no password, UTF-8, locale C.

    Args:
        bin_dir: the folder of the server's binaries.
        data: the data directory; made where it is missing.

    Raises:
        EmbeddedError: initdb failed; its output is in the message.
    """
    data.mkdir(parents=True, exist_ok=True)
    owner = account.current()
    owner.give(data)
    command = [
        *owner.prefix,
        str(bin_dir / "initdb"),
        *("-D", str(data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"),
        "--no-sync",
    ]
    done = subprocess.run(  # noqa: S603 - our own command line
        command,
        env=environment(bin_dir),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        user=owner.uid,
        group=owner.gid,
        extra_groups=owner.extra_groups,
    )
    if done.returncode:
        raise EmbeddedError(f"initdb failed with status {done.returncode}:\n{done.stdout}")
