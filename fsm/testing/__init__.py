"""What hosts and our own tests use: a clock they own, and sessions in memory."""

from fsm.testing.clock import VirtualClock
from fsm.testing.session import MemoryServer, MemorySession

__all__ = ["MemoryServer", "MemorySession", "VirtualClock"]
