"""Onboards a client: makes it with its credentials and a key, but for what exists already, and prints what there is now."""

import asyncio
import sys

from claviger import explain, must, signed_in
from claviger_client import ApiKeyStatus, GraphQLClientGraphQLMultiError


async def onboard(name: str, labels: list[str]) -> None:
    async with signed_in() as claviger:
        # The server's search finds all clients whose name or company contains the name.
        clients = must(await claviger.find_client(name))
        found = next((client for client in clients.nodes if client.name == name), None)
        if not found and clients.page_info.has_next_page:
            sys.exit(f"more than 100 clients are like {name}")
        client = found or must(await claviger.create_client(name)).client
        show("client", client.id, name, found)

        holdings = must(await claviger.holdings(client.id))
        known = {credential.label: credential for credential in holdings.credentials.nodes}
        for label in labels:
            secret = sys.stdin.readline().removesuffix("\n")
            credential = known.get(label) or must(await claviger.create_credential(client.id, label, secret)).credential
            show("credential", credential.id, label, label in known)

        # Last, since it is shown this once: whatever fails before it loses no key.
        for key in holdings.api_keys.nodes:
            if key.name == name and key.status == ApiKeyStatus.ACTIVE:
                return show("key", key.id, name, key)
        made = must(await claviger.create_api_key(client.id, name))
        show("key", made.api_key.id, name, None, made.raw_key)


def show(kind: str, id: str, name: str, existed: object, *more: str) -> None:
    print(kind, id, name, "exists" if existed else "created", *more, sep="\t", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: onboard.py NAME [LABEL…], with a line of standard input for each secret")
    try:
        asyncio.run(onboard(sys.argv[1], sys.argv[2:]))
    except GraphQLClientGraphQLMultiError as error:
        sys.exit(explain(error))
