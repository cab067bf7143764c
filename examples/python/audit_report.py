"""Writes a span of the audit log, newest first, as CSV."""

import argparse
import asyncio
import csv
import sys
from datetime import datetime

from claviger import explain, must, signed_in
from claviger_client import AuditAction, AuditOutcome, GraphQLClientGraphQLMultiError

COLUMNS = ["time", "user", "address", "action", "operation", "resource", "id", "outcome", "error", "request"]


async def report(
    start: datetime, end: datetime, actions: list[AuditAction] | None, outcomes: list[AuditOutcome] | None
) -> None:
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(COLUMNS)
    async with signed_in() as claviger:
        after = None
        while True:
            page = must(await claviger.audit_page(start, end, actions, outcomes, after))
            for entry in page.nodes:
                user = entry.user.email if entry.user else ""
                deed = [entry.action.value, entry.operation, entry.resource_type.value, entry.resource_id]
                outcome = [entry.outcome.value, entry.error_code and entry.error_code.value, entry.request_id]
                rows.writerow([entry.occurred_at.isoformat(), user, entry.ip_address, *deed, *outcome])
            if not page.page_info.has_next_page:
                return
            after = page.page_info.end_cursor


def time(text: str) -> datetime:
    """Of this machine's time zone where the text names none."""
    return datetime.fromisoformat(text).astimezone()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("start", type=time, help="such as 2026-01-01, or 2026-01-01T00:00:00+00:00")
    arguments.add_argument("end", type=time)
    arguments.add_argument("--action", action="append", type=AuditAction, help="may be repeated")
    arguments.add_argument("--outcome", action="append", type=AuditOutcome, help="may be repeated")
    chosen = arguments.parse_args()
    try:
        asyncio.run(report(chosen.start, chosen.end, chosen.action, chosen.outcome))
    except GraphQLClientGraphQLMultiError as error:
        sys.exit(explain(error))
