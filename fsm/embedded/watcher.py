"""Ends the postmaster when this process is gone, however it went."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

from fsm.embedded.account import Account

# The postmaster tells the watcher its pid itself, so there is no moment in which it runs unwatched.
_RUN = 'echo $$; exec "$@" >&2'
# A pipe and not PR_SET_PDEATHSIG: that one fires when the *thread* that forked ends, and macOS has
# nothing like it. Its end of file says that the process that holds the other end is gone.
_WATCH = 'read -r pid && { read -r end_of_file; kill -QUIT "$pid"; }'


class Watcher:
    """Watches over one postmaster, from before it starts."""

    def __init__(self) -> None:
        read_end, self._write_end = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                ["/bin/sh", "-c", _WATCH],
                cwd="/",
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(read_end)

    def launch(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stderr: IO[bytes],
        owner: Account,
    ) -> subprocess.Popen[bytes]:
        """Start a command as a direct child, watched from its first moment."""
        return subprocess.Popen(  # noqa: S603 - our own command line
            ["/bin/sh", "-c", _RUN, "sh", *owner.prefix, *command],
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=self._write_end,
            stderr=stderr,
            start_new_session=True,
            user=owner.uid,
            group=owner.gid,
            extra_groups=owner.extra_groups,
        )

    def close(self) -> None:
        """Watch no more."""
        self._process.kill()
        self._process.wait()
        os.close(self._write_end)
