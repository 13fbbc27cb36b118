"""Imports what the connector will use of the SDK, so that a worker pays for it once, before it forks."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class _Nothing:
    """Stands in for a request adapter: builders are built, and no call is made."""

    base_url = "https://graph.microsoft.com/v1.0"

    def enable_backing_store(self, factory: object) -> None:
        """What the client's constructor calls."""


def preload() -> None:
    """Import the client, the models that we send and the request builders that the SDK would import when first used."""
    import_module("connectors.entra.changes")
    builders = import_module("msgraph.generated.base_graph_service_client")
    client: Any = builders.BaseGraphServiceClient(_Nothing())
    user = client.users.by_user_id("-")
    group = client.groups.by_group_id("-")
    member = group.members.by_directory_object_id("-")
    for item in (client.applications.by_application_id("-"), client.service_principals.by_service_principal_id("-")):
        _ = (item.owners, item.remove_password)
    _ = (
        client.directory.deleted_items.by_directory_object_id("-").restore,
        client.oauth2_permission_grants,
        client.role_management.directory.role_assignments.by_unified_role_assignment_id("-"),
        client.service_principals.by_service_principal_id("-").app_role_assigned_to,
        group.members.ref,
        member.ref,
        user.member_of.graph_group,
        user.app_role_assignments,
        user.oauth2_permission_grants,
        user.owned_objects,
        user.revoke_sign_in_sessions,
    )
