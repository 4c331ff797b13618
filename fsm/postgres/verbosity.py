"""Makes libpq put the SQLSTATE into the text of a connection error.

Until a connection is up libpq has no PGresult to carry an error's fields, so an error of start-up
is text only, and psycopg's ``sqlstate`` is None. libpq's ``PQsetErrorVerbosity`` may be called from
``PQconnectStart`` on, and makes the text read ``FATAL:  28P01: ...`` with a ``LOCATION:`` line that
names the server's source function. psycopg does not wrap that function, so it is called through
ctypes, on the libpq that psycopg loaded (docs: libpq-control.html, PQsetErrorVerbosity).
"""

from __future__ import annotations

import ctypes
import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

from psycopg import pq

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

_PQERRORS_DEFAULT = 1
_PQERRORS_VERBOSE = 2

# The compiled modules are linked to the libpq they use, so a symbol looked up in them is found in
# that libpq and in no other copy that the process may have loaded.
_COMPILED = {"binary": "psycopg_binary.pq", "c": "psycopg_c.pq"}


def show_sqlstate(pgconn: PGconn) -> bool:
    """Make errors of this connection carry SQLSTATE and source function in their text.

    Args:
        pgconn: a connection that ``PGconn.connect_start`` made.

    Returns:
        False where libpq's function cannot be reached: the texts stay as they are.
    """
    return _set_verbosity(pgconn, _PQERRORS_VERBOSE)


def show_message_only(pgconn: PGconn) -> bool:
    """Undo ``show_sqlstate``: once a connection is up, each PGresult has the fields apart."""
    return _set_verbosity(pgconn, _PQERRORS_DEFAULT)


def _set_verbosity(pgconn: PGconn, verbosity: int) -> bool:
    setter = _setter()
    pointer = getattr(pgconn, "pgconn_ptr", None)
    if setter is None or not pointer:
        return False
    setter(pointer, verbosity)
    return True


@cache
def _setter() -> Any:
    try:
        function = _loaded_libpq().PQsetErrorVerbosity
    except (ImportError, OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_int]
    function.restype = ctypes.c_int
    return function


def _loaded_libpq() -> Any:
    compiled = _COMPILED.get(pq.__impl__)
    if compiled is None:
        return importlib.import_module("psycopg.pq._pq_ctypes").pq
    return ctypes.CDLL(importlib.import_module(compiled).__file__)
