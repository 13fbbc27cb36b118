"""Okta: the account, its sessions, and what it may do, by the management API. https://developer.okta.com/docs/api/

No call can end: access tokens that were already issued and that an application verifies offline (24 h at most), the
sessions that applications keep of their own (Universal Logout, where the application takes part), and the secrets of
service applications that the leaver knew. See docs/connectors/okta.md.
"""

from __future__ import annotations

from connectors.okta.config import OktaConfig as OktaConfig
from connectors.okta.connector import Okta as Okta
