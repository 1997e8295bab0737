"""Dates as HTTP and S3 write them; all to and from whole seconds or nanoseconds since the epoch.

Never asks what time it is. A date that cannot be parsed is None: RFC 9110 (13.1.3) says that a
condition with an invalid date is ignored.
"""

from __future__ import annotations

import calendar
import datetime
import email.utils
import functools

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@functools.lru_cache(maxsize=4096)
def render_http_date(seconds: int) -> str:
    """Return an IMF-fixdate; cached because every answer carries the same two or three."""
    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return (
        f"{_DAYS[when.weekday()]}, {when.day:02} {_MONTHS[when.month - 1]} {when.year:04} "
        f"{when.hour:02}:{when.minute:02}:{when.second:02} GMT"
    )


def parse_http_date(text: str) -> int | None:
    """Return whole seconds since the epoch, or None when `text` is no date."""
    try:
        parsed = email.utils.parsedate_tz(text)
        if parsed is None:
            return parse_iso_date(text)
        return calendar.timegm((*parsed[:6], 0, 0, 0)) - (parsed[9] or 0)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


def parse_iso_date(text: str) -> int | None:
    """Return the seconds of an ISO 8601 date-time, as some SDKs send conditions, or None."""
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return int(when.timestamp())


def render_iso_date(nanoseconds: int) -> str:
    """Return S3's form in XML, `2026-01-31T12:00:00.000Z`, milliseconds cut off as S3 does."""
    when = datetime.datetime.fromtimestamp(nanoseconds // 1_000_000_000, datetime.UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%S.000Z")


@functools.lru_cache(maxsize=1024)
def parse_amz_date(text: str) -> int | None:
    """Return the seconds of SigV4's `20260131T120000Z`, or None.

    Cached: strptime takes 8 us, a tenth of a HEAD, and requests of one second carry one text.
    """
    if len(text) != 16 or text[8] != "T" or text[15] != "Z":
        return None
    digits = text[:8] + text[9:15]
    if not (digits.isascii() and digits.isdigit()):
        return None
    try:
        when = datetime.datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=datetime.UTC)
    except ValueError:
        return None
    return int(when.timestamp())


def render_amz_date(seconds: int) -> str:
    """Return SigV4's form of a time."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
