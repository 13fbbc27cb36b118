"""The domain, without I/O: nouns, the case's state machine, policy and the audit chain. The clock is passed in."""
