"""`rollcall api-key ...`: who may use the HTTP API."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from rollcall.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Who may use the HTTP API: a viewer reads, an operator also acts on batches, an admin also sees who did what.",
)

T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object; times in RFC 3339.")]


class UnknownKeyError(LookupError):
    """There is no such key; the message is one line."""


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is: a person, a service.", show_default=False)],
    role: Annotated[Literal["viewer", "operator", "admin"], typer.Option(help="What it may do.")] = "viewer",
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, this once: what is stored is its hash."""
    from api.access import digest, new_key
    from rollcall.rendering import note, print_json, print_line
    from store import access

    if not 1 <= len(name) <= 200 or not name.isprintable():
        raise typer.BadParameter("a name has 1 to 200 printable characters", param_hint="NAME")
    key, key_id = new_key(), secrets.token_hex(4)
    _asked(lambda connection: access.create_key(connection, key_id, name, role, digest(key)))
    if as_json:
        print_json({"key_id": key_id, "name": name, "role": role, "key": key})
        return
    print_line(key)
    note(f"key {key_id} of {name} ({role}); it is not shown again")


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """All keys, also revoked ones; the keys themselves are nowhere."""
    from dataclasses import asdict

    from rollcall.rendering import ColumnStyle, at, note, print_json, print_table
    from store import access

    keys = _asked(access.keys)
    if as_json:
        print_json({"keys": [asdict(each) for each in keys]})
        return
    if not keys:
        note("there are no keys: rollcall api-key create NAME")
        return
    print_table(
        [ColumnStyle("key"), ColumnStyle("role"), ColumnStyle("created"), ColumnStyle("revoked"), ColumnStyle("name")],
        [(each.key_id, each.role, at(each.created_at), at(each.revoked_at), each.name) for each in keys],
    )


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Its id, as `list` shows it.", show_default=False)],
) -> None:
    """Shut a key out, and all browser sessions begun with it; running APIs notice within 5 s."""
    from rollcall.rendering import note, showable
    from store import access

    if "\0" in key_id or not _asked(lambda connection: access.revoke_key(connection, key_id)):
        raise UnknownKeyError(
            f'there is no key "{showable(key_id)}" that could be revoked: see `rollcall api-key list`'
        )
    note(f"key {key_id} is revoked")


def _asked(ask: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    return asyncio.run(_in_a_transaction(ask, load_settings()))


async def _in_a_transaction(ask: Callable[[AsyncConnection], Awaitable[T]], settings: Settings) -> T:
    from migrations.version import check
    from rollcall.reaching import naming
    from store.connection import driver

    database = settings.database()
    with naming(settings, "PostgreSQL"):
        engine = database.engine("api-key")
        try:
            async with engine.begin() as connection:
                await check(await driver(connection), database.schema)
                return await ask(connection)
        finally:
            await engine.dispose()
