"""Speaks to Postgres over one walsender connection; never decides what to do next."""
