"""Ends a leaver's access: contain, revoke, prove, watch."""
