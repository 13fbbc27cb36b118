"""Entra ID by Microsoft Graph v1.0: the account, its sessions, and what it may do.

https://learn.microsoft.com/graph/api/overview and https://learn.microsoft.com/entra/identity/users/users-revoke-access

No call can end: access tokens that were already issued (about an hour; up to 28 h for clients that support continuous
access evaluation, whose services are told within about 15 min), the sessions of guests, eligible PIM roles, and
whatever a secret of an application that the leaver knew still opens. See docs/connectors/entra.md.
"""

from __future__ import annotations

from connectors.entra.config import EntraConfig as EntraConfig
from connectors.entra.connector import Entra as Entra
