"""What each Okta event type means: one table, which docs/sources/okta.md repeats for people.

https://developer.okta.com/docs/reference/api/event-types/ . A pattern ends in `*` and stands for the types that begin so.
Types that only the System Log has never come by hook; they are here because a catch-up reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from offboard_worker.core.event import EventKind


@dataclass(frozen=True, slots=True)
class Meaning:
    """`kind` None: nobody's access ends, and `says` is why. `teaches`: it is kept for the id and login that it names."""

    kind: EventKind | None
    says: str
    hook: bool = True
    teaches: bool = False


def _m(kind: EventKind | None, says: str, *, hook: bool = True, teaches: bool = False) -> Meaning:
    return Meaning(kind, says, hook, teaches)


_ONE_APP = "gives back one application, not the account: it lifts no denial"
_LOCK = "a lock-out after failed sign-ins, not a departure"
_FACTOR = "a change of authenticators"

MEANING: Final[Mapping[str, Meaning]] = {
    # offboard
    "user.lifecycle.deactivate": _m(EventKind.ACCOUNT_DISABLED, "the account was deactivated"),
    "user.lifecycle.suspend": _m(EventKind.ACCOUNT_SUSPENDED, "the account was suspended"),
    "user.lifecycle.delete.initiated": _m(EventKind.ACCOUNT_PURGED, "the account is being deleted"),
    # session kill
    "user.session.clear": _m(EventKind.SESSION_REVOKED, "every session was cleared"),
    "user.authentication.universal_logout": _m(EventKind.SESSION_REVOKED, "signed out of every application"),
    "user.authentication.universal_logout.scheduled": _m(EventKind.SESSION_REVOKED, "sign-out everywhere was ordered"),
    # access
    "application.user_membership.remove": _m(EventKind.ACCESS_REMOVED, "lost an application"),
    "group.user_membership.remove": _m(EventKind.ACCESS_REMOVED, "left a group; a leaver if it is in leaver_groups"),
    "group.lifecycle.delete": _m(EventKind.ACCESS_REMOVED, "a group was deleted"),
    "user.account.privilege.revoke": _m(EventKind.ACCESS_REMOVED, "lost every administrator role"),
    "application.provision.user.delete": _m(EventKind.ACCESS_REMOVED, "the account in one application was deleted"),
    "application.provision.user.delete.schedule": _m(
        EventKind.ACCESS_REMOVED, "the account in one application will be deleted"
    ),
    "application.provision.user.remove_entitlements": _m(
        EventKind.ACCESS_REMOVED, "lost entitlements in one application"
    ),
    # reactivate
    "user.lifecycle.activate": _m(EventKind.ACCOUNT_ENABLED, "the account was activated"),
    "user.lifecycle.reactivate": _m(EventKind.ACCOUNT_ENABLED, "the account was reactivated"),
    "user.lifecycle.unsuspend": _m(EventKind.ACCOUNT_ENABLED, "the suspension ended"),
    "application.user_membership.add": _m(None, _ONE_APP),
    "application.provision.user.reactivate": _m(None, _ONE_APP),
    # teaches who is who
    "user.lifecycle.create": _m(None, "an account was created", teaches=True),
    "user.account.update_profile": _m(None, "the profile changed", teaches=True),
    # ignore
    "user.account.lock": _m(None, _LOCK),
    "user.account.lock.limit": _m(None, _LOCK, hook=False),
    "user.account.unlock*": _m(None, "the end of a lock-out"),
    "user.account.reset_password": _m(None, "a password reset"),
    "user.account.update_password": _m(None, "a new password"),
    "user.session.start": _m(None, "a sign-in"),
    "user.session.end": _m(None, "an ordinary sign-out"),
    "user.mfa.factor.*": _m(None, _FACTOR),
    "user.risk.*": _m(None, "a change of risk"),
    "group.user_membership.add": _m(None, "joined a group"),
    "group.lifecycle.create": _m(None, "a group was created"),
    "application.user_membership.update": _m(None, "a property in one application changed"),
    "application.user_membership.change_password": _m(None, "a password in one application changed"),
    # in the System Log only
    "user.lifecycle.delete.completed": _m(EventKind.ACCOUNT_PURGED, "the account was deleted", hook=False),
    "system.import.user.delete": _m(EventKind.ACCOUNT_PURGED, "an import deleted the account", hook=False),
    "system.import.user.suspend": _m(EventKind.ACCOUNT_SUSPENDED, "an import suspended the account", hook=False),
    "system.import.user.unsuspend": _m(EventKind.ACCOUNT_ENABLED, "an import ended the suspension", hook=False),
    "system.import.user.unsuspend_after_confirm": _m(
        EventKind.ACCOUNT_ENABLED, "an import ended the suspension, confirmed", hook=False
    ),
    "system.import.user.update_user_lifecycle_from_master": _m(
        EventKind.ACCOUNT_CHANGED, "an import changed the status, without saying to what: re-read", hook=False
    ),
    "system.identity_sources.user.delete": _m(EventKind.ACCOUNT_DISABLED, "the HR source ended the user", hook=False),
    "system.identity_sources.user.bulk_delete": _m(EventKind.ACCOUNT_DISABLED, "as above, in bulk", hook=False),
    "system.identity_sources.bulk_delete": _m(
        EventKind.ACCOUNT_DISABLED, "as above, in bulk; means nothing where it names no user", hook=False
    ),
    "application.user_membership.deprovision": _m(EventKind.ACCESS_REMOVED, "deprovisioned in one app", hook=False),
    "application.user_membership.revoke": _m(EventKind.ACCESS_REMOVED, "unassigned from one app", hook=False),
    "application.provision.user.deactivate": _m(EventKind.ACCESS_REMOVED, "deactivated in one app", hook=False),
    "application.provision.user.deprovision": _m(EventKind.ACCESS_REMOVED, "deprovisioned in one app", hook=False),
}

_PREFIXES: Final = tuple((name[:-1], meaning) for name, meaning in MEANING.items() if name.endswith("*"))


def meaning_of(vendor_type: str) -> Meaning | None:
    """Return what a type means, or None for one that the table doesn't know."""
    found = MEANING.get(vendor_type)
    if found is not None:
        return found
    return next((meaning for prefix, meaning in _PREFIXES if vendor_type.startswith(prefix)), None)
