"""Connectors: one module per system in which credentials live. Plugins, independent of one another."""
