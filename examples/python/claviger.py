"""What both programs share: signing in, and errors as a person reads them."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from claviger_client import Claviger, GraphQLClientGraphQLMultiError

T = TypeVar("T")


@asynccontextmanager
async def signed_in() -> AsyncIterator[Claviger]:
    """A client as the environment says: CLAVIGER_URL, and CLAVIGER_API_KEY or CLAVIGER_EMAIL with CLAVIGER_PASSWORD."""
    url = os.environ.get("CLAVIGER_URL", "http://127.0.0.1:3001") + "/graphql"
    token = os.environ.get("CLAVIGER_API_KEY")
    if not token:
        async with Claviger(url) as anonymous:
            email, password = os.environ["CLAVIGER_EMAIL"], os.environ["CLAVIGER_PASSWORD"]
            token = must(await anonymous.sign_in(email, password)).access_token
    async with Claviger(url, {"authorization": f"Bearer {token}"}) as claviger:
        yield claviger


def must(value: T | None) -> T:
    """A field that is null only where it failed, which has raised an error already, or where there is no such thing."""
    if value is None:
        raise LookupError("there is no such thing, or not for this user")
    return value


def explain(error: GraphQLClientGraphQLMultiError) -> str:
    """The codes, the fields that BAD_USER_INPUT names, and the requests' ids for whoever reads the server's log."""
    lines = []
    for one in error.errors:
        extensions: dict[str, Any] = one.extensions or {}
        lines.append(f"{extensions.get('code')}: {one.message}")
        for field in extensions.get("fields", []):
            lines.append(f"  {'.'.join(map(str, field['path']))}: {field['message']}")
        lines.append(f"  request {extensions.get('requestId')}")
    return "\n".join(lines)
