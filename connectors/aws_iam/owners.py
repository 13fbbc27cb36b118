"""Which IAM users are a person's: recorded ids, or an exact match of the configured attribute.

An IAM user has a name, which can be given to somebody else after a deletion and can be changed, and a unique id
(AIDA…), which can't. Both are recorded: the name is what events say, the id proves that it is still the same user.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable

from connectors.aws_iam.calls import Calls
from connectors.aws_iam.config import AwsIamConfig, Match
from connectors.aws_iam.reading import IamUser, Reading
from offboard_worker.connector import drained, side_by_side
from offboard_worker.core.person import Person, normal_email

UNIQUE_ID = re.compile(r"AIDA[A-Z0-9]{12,124}")


class Owners:
    """Finds a person's users."""

    def __init__(self, system: str, config: AwsIamConfig, calls: Calls, reading: Reading) -> None:
        self._system = system
        self._config = config
        self._calls = calls
        self._reading = reading

    def names(self, person: Person) -> list[str]:
        """The recorded user names."""
        return [alias for alias in person.aliases.get(self._system, ()) if not UNIQUE_ID.fullmatch(alias)]

    def unique_ids(self, person: Person) -> set[str]:
        """The recorded unique ids."""
        return {alias for alias in person.aliases.get(self._system, ()) if UNIQUE_ID.fullmatch(alias)}

    async def recorded(self, person: Person) -> AsyncIterator[IamUser]:
        """Yield the living users that the person's recorded ids name; then raise for those that couldn't be read.

        Where a unique id is recorded, a user of the same name with another id is somebody else's; and a user who was
        renamed is found by the id.
        """
        ids = self.unique_ids(person)
        read, unread = await drained(side_by_side(*map(self._named, self.names(person))))
        users = _once(user for user in read if not ids or user.id in ids)
        for user in users:
            yield user
        missing = ids - {user.id for user in users}
        async for user in side_by_side(*([self._with_ids(missing)] if missing else []), unread=unread):
            yield user

    async def _named(self, name: str) -> AsyncIterator[IamUser]:
        user = await self._reading.user(name)
        if user is not None:
            yield user

    async def _with_ids(self, ids: set[str]) -> AsyncIterator[IamUser]:
        async for user in self._everybody():
            if user.id in ids:
                yield user

    async def matching(self, person: Person) -> list[IamUser]:
        """Return the recorded users, and those whose configured attribute names the person."""
        users = [user async for user in self.recorded(person)]
        match = self._config.attribute
        wanted = self._wanted(person, match) if match else set()
        if match is None or not wanted:
            return users
        if match.tag is None:
            users += [user async for user in self._everybody() if self._form(match, user.name) in wanted]
            return _once(users)
        # Listing users leaves tags out; the account's details hold them for all users at one call per page.
        details = self._calls.stream("get_account_authorization_details", "UserDetailList", Filter=["User"])
        async for detail in details:
            user = self._reading.described(detail)
            if match.tag in user.tags and self._form(match, user.tags[match.tag]) in wanted:
                users.append(user)
        return _once(users)

    def _wanted(self, person: Person, match: Match) -> set[str]:
        values = person.emails if match.of is None else person.aliases.get(match.of, ())
        return {self._form(match, value) for value in values}

    @staticmethod
    def _form(match: Match, value: str) -> str:
        """E-mail addresses are compared without regard to case, ids exactly."""
        return normal_email(value) if match.of is None else value

    async def _everybody(self) -> AsyncIterator[IamUser]:
        async for user in self._calls.stream("list_users", "Users"):
            yield IamUser(user["UserName"], user["UserId"], user["Arn"])


def _once(users: Iterable[IamUser]) -> list[IamUser]:
    return list({user.id: user for user in reversed(list(users))}.values())[::-1]
