"""The API access proxy: it lets a developer's calls through to an upstream whose key only the proxy holds.

It runs without the database, connectors or queue: it knows `denylist`, `core`, `errors`, `config` and `secret` alone.
"""
