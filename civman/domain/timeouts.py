"""How long civman waits for others before it does something about it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds. The defaults suit the Internet; a server on loopback or a test may want shorter ones."""

    connect_s: float = 15.0
    stall_s: float = 20.0
    """Longest silence on a connection that should bring bytes."""
    idle_s: float = 2.0
    """A connection silent for so long is relieved by another one that has nothing to do."""
    crawl_s: float = 20.0
    """A connection that brings less than 1 KiB/s for so long is replaced."""
    tries: int = 6
    """In a row without progress, before a file is given up."""
    backoff_s: float = 0.5
    """Before the second try; doubled each time."""
    longest_backoff_s: float = 30.0
    longest_retry_after_s: float = 120.0
    """A server that asks for more than this is an error, not a wait."""
    site_timeout_s: float = 30.0
    """Longest silence of CivitAI's API."""
    site_backoff_s: float = 1.0
    """Before an API request is sent again; doubled each time."""


PATIENT = Patience()
