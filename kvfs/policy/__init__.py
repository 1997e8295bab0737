"""Pure decisions: eviction, expiry, admission."""
