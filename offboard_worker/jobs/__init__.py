"""The work: what happens between an accepted delivery and a closed case."""
