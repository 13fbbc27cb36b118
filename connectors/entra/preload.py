"""Imports what the connector will use of the SDK, so that a worker pays for it once, before it forks."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Imported by the SDK (and by httpx) only inside functions.
LATE = (
    "anyio._backends._asyncio",
    "httpcore",
    "msgraph.generated.models.app_role_assignment_collection_response",
    "msgraph.generated.models.application",
    "msgraph.generated.models.application_collection_response",
    "msgraph.generated.models.directory_object_collection_response",
    "msgraph.generated.models.group_collection_response",
    "msgraph.generated.models.o_auth2_permission_grant_collection_response",
    "msgraph.generated.models.o_data_errors.o_data_error",
    "msgraph.generated.models.service_principal",
    "msgraph.generated.models.service_principal_collection_response",
    "msgraph.generated.models.unified_role_assignment_collection_response",
    "msgraph.generated.models.user_collection_response",
    "msgraph.generated.users.item.revoke_sign_in_sessions.revoke_sign_in_sessions_post_response",
)


class _Nothing:
    """Stands in for a request adapter: builders are built, and no call is made."""

    base_url = "https://graph.microsoft.com/v1.0"

    def enable_backing_store(self, factory: object) -> None:
        """What the client's constructor calls."""


def preload() -> None:
    """Import what the SDK would import when first used, and read the trusted certificates."""
    import_module("connectors.entra.changes")
    import_module("connectors.entra.graph").trust()
    for name in LATE:
        import_module(name)
    builders = import_module("msgraph.generated.base_graph_service_client")
    client: Any = builders.BaseGraphServiceClient(_Nothing())
    user = client.users.by_user_id("-")
    group = client.groups.by_group_id("-")
    member = group.members.by_directory_object_id("-")
    for item in (client.applications.by_application_id("-"), client.service_principals.by_service_principal_id("-")):
        _ = (item.owners, item.remove_password)
    _ = (
        client.directory.deleted_items.by_directory_object_id("-").restore,
        client.oauth2_permission_grants.by_o_auth2_permission_grant_id("-"),
        client.role_management.directory.role_assignments.by_unified_role_assignment_id("-"),
        client.service_principals.by_service_principal_id("-").app_role_assigned_to,
        group.members.ref,
        member.ref,
        user.member_of.graph_group,
        user.app_role_assignments.by_app_role_assignment_id("-"),
        user.oauth2_permission_grants,
        user.owned_objects,
        user.revoke_sign_in_sessions,
    )
