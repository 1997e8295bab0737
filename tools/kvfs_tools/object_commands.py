"""`kvfs put`, `get`, `ls`, `stat` and `rm`: objects by BUCKET/KEY, straight on the store.

Holds: `put` publishes whole or not at all, `get` leaves the whole file or none.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat as stat_module
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from kvfs.errors import InvalidArgument, NamespaceNotFound, NotFound
from kvfs.model import Entry, ListedObject, NamespaceId, ObjectPath, PutOptions, WriteCondition
from kvfs.store.store import Store
from kvfs_tools.command_store import json_option, name_bytes, open_command_store, store_option
from kvfs_tools.object_report import entry_record, entry_text, namespace_record, namespace_text
from kvfs_tools.progress import Progress
from kvfs_tools.sizes import (
    parse_duration,
    parse_object_path,
    render_bytes,
    render_json_name,
    render_size,
)

PIECE_BYTES = 4 * 2**20
"""One read and one write; larger gains nothing (4 MiB runs at the page cache's speed)."""
PAGE_KEYS = 1000
"""Keys a listing page, as S3."""


@click.command()
@click.argument("source", metavar="FILE|-", type=click.Path(allow_dash=True))
@click.argument("target", metavar="BUCKET/KEY")
@click.option("--create-bucket", is_flag=True, help="Make the bucket when it is not there.")
@click.option("--no-replace", is_flag=True, help="Fail when the object exists.")
@click.option("--ttl", help="Forget it after so long, for example 30m, 12h or 7d; 0 = never.")
@store_option
@json_option
def put(
    source: str,
    target: str,
    create_bucket: bool,
    no_replace: bool,
    ttl: str | None,
    store_path: Path | None,
    is_json: bool,
) -> None:
    """Store FILE (- for standard input) as BUCKET/KEY; it is visible when it is complete."""
    path = parse_object_path(name_bytes(target))
    options = PutOptions(
        ttl_s=None if ttl is None else parse_duration(ttl),
        condition=WriteCondition(must_be_absent=no_replace),
    )
    with open_command_store(store_path) as store, _opened_input(source) as file:
        bucket = _require_bucket(store, path.namespace, create_bucket)
        entry = _put_file(store, bucket, file, path, options)
    if is_json:
        click.echo(json.dumps(entry_record(path, entry)))


@click.command()
@click.argument("source", metavar="BUCKET/KEY")
@click.argument("target", metavar="FILE|-", type=click.Path(allow_dash=True))
@store_option
def get(source: str, target: str, store_path: Path | None) -> None:
    """Fetch BUCKET/KEY into FILE (- for standard output)."""
    path = parse_object_path(name_bytes(source))
    with (
        open_command_store(store_path) as store,
        store.open_read(path) as view,
        _opened_output(target) as file,
        Progress(str(path), view.size) as progress,
    ):
        offset = 0
        while offset < view.size:
            piece = view.pread(offset, min(PIECE_BYTES, view.size - offset))
            file.write(piece)
            progress.add(len(piece))
            offset += len(piece)


@click.command()
@click.argument("where", metavar="[BUCKET[/PREFIX]]", required=False)
@click.option("-r", "--recursive", is_flag=True, help="Every object below, not one level.")
@click.option("-l", "--long", "is_long", is_flag=True, help="Sizes as well.")
@store_option
@json_option
def ls(
    where: str | None, recursive: bool, is_long: bool, store_path: Path | None, is_json: bool
) -> None:
    """List the buckets, or the objects of BUCKET whose keys begin with PREFIX."""
    with open_command_store(store_path, read_only=True) as store:
        if not where:
            for namespace in store.list_namespaces():
                record = namespace_record(namespace)
                click.echo(json.dumps(record) if is_json else f"{render_bytes(namespace.name)}/")
            return
        bucket, _, prefix = name_bytes(where).partition(b"/")
        _require_bucket(store, bucket, create=False)
        for item in _listed(store, bucket, prefix, recursive):
            click.echo(_list_line(bucket, item, is_long, is_json))


@click.command()
@click.argument("where", metavar="BUCKET[/KEY]")
@store_option
@json_option
def stat(where: str, store_path: Path | None, is_json: bool) -> None:
    """Show what the store knows of one object or bucket; it does not count as an access."""
    with open_command_store(store_path, read_only=True) as store:
        if "/" not in where:
            namespace = store.find_namespace(name_bytes(where))
            if namespace is None:
                raise NamespaceNotFound(f"There is no bucket {where!r}.")
            record = namespace_record(namespace)
            click.echo(json.dumps(record) if is_json else namespace_text(namespace))
            return
        path = parse_object_path(name_bytes(where))
        entry = store.stat(path)
    click.echo(json.dumps(entry_record(path, entry)) if is_json else entry_text(path, entry))


@click.command()
@click.argument("targets", metavar="BUCKET/KEY...", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Every object whose key begins so.")
@click.option("-f", "--force", is_flag=True, help="Absent objects are no error.")
@click.option("--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@store_option
@json_option
def rm(
    targets: tuple[str, ...],
    recursive: bool,
    force: bool,
    dry_run: bool,
    store_path: Path | None,
    is_json: bool,
) -> None:
    """Remove objects."""
    removed = removed_bytes = 0
    with open_command_store(store_path) as store:
        for path, entry in _to_remove(store, targets, recursive, force):
            if not dry_run:
                with contextlib.suppress(NotFound):  # somebody else was quicker: gone is gone
                    store.delete(path)
            removed, removed_bytes = removed + 1, removed_bytes + entry.size
            if dry_run and not is_json:
                click.echo(f"would remove {_shown(path)} ({render_size(entry.size)})")
    record = {"removed": removed, "bytes": removed_bytes, "dry_run": dry_run}
    if is_json:
        click.echo(json.dumps(record))
    elif recursive:
        verb = "Would remove" if dry_run else "Removed"
        click.echo(f"{verb} {removed} objects, {render_size(removed_bytes)}.")


def _put_file(
    store: Store, bucket: NamespaceId, file: BinaryIO, path: ObjectPath, options: PutOptions
) -> Entry:
    """Stage the file's bytes and publish them; the staging is gone whatever happens."""
    size_bytes = _known_size(file)
    with (
        contextlib.closing(store.stage_in_order(bucket, size_bytes=size_bytes)) as staging,
        Progress(str(path), size_bytes or 0) as progress,
    ):
        total = 0
        while piece := file.read(PIECE_BYTES):
            staging.write(piece)
            total += len(piece)
            progress.add(len(piece))
        if total < (size_bytes or 0):
            staging.truncate(total)  # the file shrank while it was read
        return store.publish(staging, path, options)


def _known_size(file: BinaryIO) -> int | None:
    status = os.fstat(file.fileno())
    return status.st_size if stat_module.S_ISREG(status.st_mode) else None


def _require_bucket(store: Store, name: bytes, create: bool) -> NamespaceId:
    found = store.find_namespace(name)
    if found is not None:
        return found.namespace_id
    if create:
        return store.create_namespace(name).namespace_id
    shown = render_bytes(name)
    raise NamespaceNotFound(
        f"There is no bucket {shown!r}: run `kvfs mkdir {shown}`, or put with --create-bucket."
    )


def _listed(
    store: Store, bucket: bytes, prefix: bytes, recursive: bool
) -> Iterator[ListedObject | bytes]:
    """Yield objects and common prefixes in key order, a page at a time."""
    after = b""
    while True:
        page = store.list_objects(
            bucket,
            prefix=prefix,
            delimiter=b"" if recursive else b"/",
            after=after,
            limit=PAGE_KEYS,
        )
        items: list[ListedObject | bytes] = [*page.objects, *page.common_prefixes]
        yield from sorted(items, key=lambda item: item if isinstance(item, bytes) else item.key)
        if not page.is_truncated:
            return
        after = page.next_after


def _list_line(bucket: bytes, item: ListedObject | bytes, is_long: bool, is_json: bool) -> str:
    if isinstance(item, bytes):
        if is_json:
            return json.dumps(
                {"bucket": render_json_name(bucket), "prefix": render_json_name(item)}
            )
        return f"{'':>12}  {render_bytes(item)}" if is_long else render_bytes(item)
    if is_json:
        return json.dumps(entry_record(ObjectPath(bucket, item.key), item.entry))
    key = render_bytes(item.key)
    return f"{render_size(item.entry.size):>12}  {key}" if is_long else key


def _to_remove(
    store: Store, targets: tuple[str, ...], recursive: bool, force: bool
) -> Iterator[tuple[ObjectPath, Entry]]:
    for target in targets:
        if recursive:
            bucket, slash, prefix = name_bytes(target).partition(b"/")
            if not slash:
                raise InvalidArgument(f"To empty the bucket, write `kvfs rm -r {target}/`.")
            _require_bucket(store, bucket, create=False)
            for item in _listed(store, bucket, prefix, recursive=True):
                if isinstance(item, ListedObject):
                    yield ObjectPath(bucket, item.key), item.entry
            continue
        path = parse_object_path(name_bytes(target))
        entry = store.find(path)
        if entry is not None:
            yield path, entry
        elif not force:
            raise NotFound(f"There is no object {_shown(path)}.")


def _shown(path: ObjectPath) -> str:
    return render_bytes(path.namespace + b"/" + path.key)


@contextlib.contextmanager
def _opened_input(source: str) -> Iterator[BinaryIO]:
    if source == "-":
        yield sys.stdin.buffer
        return
    with open(source, "rb", buffering=0) as file:
        yield file


@contextlib.contextmanager
def _opened_output(target: str) -> Iterator[BinaryIO]:
    """Yield a file that takes the name `target` when the block ends well, and none otherwise."""
    if target == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if os.path.exists(target) and not os.path.isfile(target):
        with open(target, "wb") as file:  # a device or a pipe: written in place
            yield file
        return
    partial = f"{target}.kvfs-{os.getpid()}.part"
    try:
        with open(partial, "xb") as file:
            yield file
        os.replace(partial, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
