"""Timeouts, retry counts and back-off times for servers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Timeouts and delays in seconds.

    The defaults suit the Internet; a server on loopback or a test may use shorter ones.
    """

    connect_s: float = 15.0
    stall_s: float = 20.0
    """The maximum time without data on a download connection."""
    idle_s: float = 2.0
    """If a connection receives no data for this long, part of its work is given to an idle connection."""
    crawl_s: float = 20.0
    """A connection slower than 1 KiB/s for this long is replaced."""
    tries: int = 6
    """The number of attempts without progress before the download of a file fails."""
    backoff_s: float = 0.5
    """The delay before the second attempt; it doubles each time."""
    longest_backoff_s: float = 30.0
    longest_retry_after_s: float = 120.0
    """If a server asks to wait longer than this, the download fails instead of waiting."""
    site_timeout_s: float = 30.0
    """The maximum time without data from CivitAI's API."""
    site_backoff_s: float = 1.0
    """The delay before an API request is sent again; it doubles each time."""


PATIENT = Patience()
