"""The store: the durable truth, on SQLite or PostgreSQL. Redis holds nothing that can't be rebuilt from here."""
