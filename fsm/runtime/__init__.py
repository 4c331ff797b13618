"""Runs a machine: one actor, one queue, named timers, a clock, the journal, the Session port."""
