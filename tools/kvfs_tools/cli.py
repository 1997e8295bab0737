"""`kvfs`: finds the command, runs it, and turns its outcome into an exit code.

Owns the table of commands and the edge where errors become one sentence on stderr; refuses to know
what a command does. Holds: importing this module loads no command, so `kvfs --help` and a mistyped
flag cost tens of milliseconds (a command's module is imported when the command is named).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from kvfs.errors import KvfsError
from kvfs_tools.exit_codes import ExitCode, exit_code_of

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("kvfs_tools.store_commands:init", "Make a store."),
    "mkdir": ("kvfs_tools.store_commands:mkdir", "Make a bucket."),
    "rmdir": ("kvfs_tools.store_commands:rmdir", "Remove an empty bucket."),
    "put": ("kvfs_tools.object_commands:put", "Store a file as an object."),
    "get": ("kvfs_tools.object_commands:get", "Fetch an object into a file."),
    "ls": ("kvfs_tools.object_commands:ls", "List buckets or objects."),
    "stat": ("kvfs_tools.object_commands:stat", "Show all that is known of one object or bucket."),
    "rm": ("kvfs_tools.object_commands:rm", "Remove objects."),
    "ttl": ("kvfs_tools.lifetime_commands:ttl", "Show or set how long an object lives."),
    "pin": ("kvfs_tools.lifetime_commands:pin", "Keep objects."),
    "unpin": ("kvfs_tools.lifetime_commands:unpin", "Let pinned objects leave again."),
    "touch": ("kvfs_tools.lifetime_commands:touch", "Count an access to objects."),
    "du": ("kvfs_tools.usage_commands:du", "Say what the space is used for."),
    "top": ("kvfs_tools.top:top", "Show what a store is doing, live."),
    "verify": ("kvfs_tools.bucket_policy:verify", "Check a bucket's bytes at every open, or not."),
    "compress": ("kvfs_tools.bucket_policy:compress", "Compress a bucket's objects at once."),
    "mount": ("kvfs_tools.mount_commands:mount", "Mount a store."),
    "umount": ("kvfs_tools.mount_commands:umount", "Unmount a store, cleanly."),
    "up": ("kvfs_tools.up:up", "Store, mount and gateway on this machine, until Ctrl-C."),
    "status": ("kvfs_tools.status:status", "Say how a store is, in a few lines."),
    "credential": (
        "kvfs_tools.credential_commands:credential",
        "S3 credentials that open some buckets only.",
    ),
    "doctor": ("kvfs_tools.doctor:doctor", "Check this machine and say what to change."),
    "env": ("kvfs_tools.env_command:env", "Print paste-ready settings for an engine."),
}
"""Command -> where it lives and its line in `kvfs --help`. The modules are imported when named."""


class LazyGroup(click.Group):
    """A group that knows its commands' names and loads one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, so that --help imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kvfs")
def cli() -> None:
    """One store of KV-cache blocks: a filesystem, an S3 endpoint and a Python API."""


def run(
    arguments: Sequence[str], command: click.Command = cli, prog_name: str = "kvfs"
) -> ExitCode:
    """Run one command line; return its exit code. Errors are one sentence on stderr."""
    is_json = "--json" in arguments
    try:
        outcome = command.main(list(arguments), prog_name=prog_name, standalone_mode=False)
    except KvfsError as error:
        return _report(error.message, exit_code_of(error), is_json)
    except click.ClickException as error:
        if not is_json:
            error.show()
            return ExitCode(error.exit_code)
        return _report(error.format_message(), ExitCode(error.exit_code), is_json)
    except (KeyboardInterrupt, click.Abort):
        return _report("Interrupted; nothing was left half-done.", ExitCode.INTERRUPTED, is_json)
    except BrokenPipeError:
        # The reader of our output left (`kvfs ls | head`): no error, and nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except PermissionError as error:
        return _report(_sentence_of(error), ExitCode.DENIED, is_json)
    except OSError as error:
        return _report(_sentence_of(error), ExitCode.ERROR, is_json)
    return ExitCode(outcome or 0)


def main() -> NoReturn:
    """Entry point of the `kvfs` command."""
    sys.exit(run(sys.argv[1:]))


def _report(message: str, code: ExitCode, is_json: bool) -> ExitCode:
    if is_json:
        line = {"message_type": "exit_error", "code": int(code), "message": message}
        click.echo(json.dumps(line), err=True)
    else:
        click.echo(f"kvfs: {message}", err=True)
    return code


def _sentence_of(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}."


if __name__ == "__main__":
    main()
