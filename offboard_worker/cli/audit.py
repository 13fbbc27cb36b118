"""`offboard audit …`: verify and export the tamper-evident trail. An export verifies anywhere, with a public key alone."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offboard_worker.cli.output import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json, with_app

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from offboard_worker.app import Opened
    from offboard_worker.core.chain import AuditRecord, Checkpoint

app = typer.Typer(help="The audit trail.", no_args_is_help=True)
PublicKeys = Annotated[
    list[Path] | None,
    typer.Option(
        "--public-key", "-k", help="An Ed25519 public key (PEM) that checkpoints may be signed with; repeatable."
    ),
]


@app.command()
def verify(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="Verify this export instead of the live store.")
    ] = None,
    public_key: PublicKeys = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Further checkpoints that went off the box (checkpoints.jsonl).")
    ] = None,
) -> None:
    """Verify the hash chain and its signed checkpoints. Exit code 1 if anything was altered."""
    keys = {}
    for path in public_key or []:
        keys.update(_public_key(path))
    extra: list[Any] = _lines(checkpoints) if checkpoints else []
    if export is not None:
        count, signed = _verify_export(export, keys, extra)
    else:
        count, signed = _verify_store(config, keys, extra)
    if as_json:
        print_json({"records": count, "checkpoints": signed, "intact": True})
    else:
        typer.echo(f"intact: {count} records in one chain, {signed} signed checkpoints match")


def _verify_export(path: Path, keys: dict[str, Ed25519PublicKey], extra: list[Any]) -> tuple[int, int]:
    from offboard_worker.core.chain import AuditRecord, Checkpoint, verify_chain, verify_checkpoints

    lines = _lines(path)
    marks = [_read(Checkpoint, line["checkpoint"]) for line in lines if _is_mark(line)]
    marks += [_read(Checkpoint, line) for line in extra]
    rows = [_read(AuditRecord, line) for line in lines if not _is_mark(line)]
    hashes = {record.seq: record.hash for record in verify_chain(rows)}
    return len(hashes), verify_checkpoints(marks, hashes, keys)


def _verify_store(config: Path, keys: dict[str, Ed25519PublicKey], extra: list[Any]) -> tuple[int, int]:
    from offboard_worker.core.chain import Checkpoint, fingerprint
    from offboard_worker.jobs.duties import audit_key
    from offboard_worker.store import audit

    async def work(opened: Opened) -> tuple[int, int]:
        trusted = dict(keys)
        if not trusted:
            mine = audit_key(opened.app.config.audit_key).public_key()
            trusted[fingerprint(mine)] = mine
        return await audit.verify(opened.store, trusted, [_read(Checkpoint, line) for line in extra])

    return with_app(config, work)


@app.command("export")
def export_(
    config: ConfigOption = DEFAULT_CONFIG,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; stdout by default.")] = None,
) -> None:
    """Write the whole trail as JSON lines: records in order, then the checkpoints."""
    from offboard_worker.store import audit

    async def work(opened: Opened) -> int:
        count = 0
        file = output.open("w", encoding="utf-8") if output else sys.stdout
        try:
            async with opened.store.read() as conn:
                async for record in audit.records(conn):
                    file.write(json.dumps(record.export(), ensure_ascii=False) + "\n")
                    count += 1
                for mark in await audit.signed(conn):
                    file.write(json.dumps({"checkpoint": mark.export()}) + "\n")
        finally:
            if output:
                file.close()
        return count

    count = with_app(config, work)
    if output:
        typer.echo(f"{count} records written to {output}")


@app.command()
def checkpoint(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Sign the chain's head now (the schedule does so every audit.checkpoint_every)."""
    from offboard_worker.jobs.duties import checkpoint_audit

    async def work(opened: Opened) -> dict[str, Any]:
        settings = opened.app.config
        made = await checkpoint_audit(opened.store, settings.audit_key, settings.audit.checkpoints)
        return made.export() if made else {}

    made = with_app(config, work)
    if as_json:
        print_json(made)
    else:
        typer.echo(f"record {made['seq']} is signed" if made else "the head is signed already")


def _public_key(path: Path) -> dict[str, Ed25519PublicKey]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from offboard_worker.core.chain import fingerprint
    from offboard_worker.errors import UsageError

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read as a PEM public key: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} is not an Ed25519 public key")
    return {fingerprint(key): key}


def _is_mark(line: Any) -> bool:
    return isinstance(line, dict) and "checkpoint" in line


def _read(kind: type[AuditRecord] | type[Checkpoint], line: Any) -> Any:
    """Read one line of an export. One in another shape was altered: nothing of ours writes such."""
    from offboard_worker.errors import AuditBroken

    types = {field.name: {"int": int, "str": str}.get(str(field.type), dict) for field in fields(kind)}
    if not isinstance(line, dict):
        raise AuditBroken(f"a line of the export is no object but {type(line).__name__}: it was altered")
    if line.keys() != types.keys() or not all(type(line[name]) is types[name] for name in types):
        raise AuditBroken(f"record {line.get('seq', '?')} doesn't have the fields of a {kind.__name__}: it was altered")
    return kind(**line)


def _lines(path: Path) -> list[Any]:
    from offboard_worker.errors import AuditBroken, UsageError

    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise AuditBroken(f"{path} is not UTF-8 text: it was altered") from None
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise AuditBroken(f"{path} holds a line that is not JSON: {error}") from None
