"""The library: every wish a person has, as a method that says in which order the parts are called.

It holds no rules of its own. What needs the network, the database's write side or torch is loaded when a wish first
needs it: `civman list` opens an SQLite file and nothing else. The wishes stand by concern in the modules beside this.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from civman.errors import UsageError
from civman.library.drawing import Drawing
from civman.library.models import Shown
from civman.library.opened import quiet, utc_now
from civman.library.sharing import Sharing

if TYPE_CHECKING:
    from civman.civitai.responses import Account
    from civman.manage.doctor import Finding

__all__ = ["Library", "Shown", "quiet", "utc_now"]


class Library(Drawing, Sharing):
    """A folder of verified files, its index, and the CivitAI they come from. A context manager.

    For one thread; downloads use threads of their own inside. Every method may raise CivmanError by cause.
    """

    def login(self, token: str, *, use_keyring: bool = True) -> "tuple[Account, str]":
        """Prove `token` with CivitAI, then keep it; whose it is and where it went. Raises: NotAllowed: `bad-key`."""
        from civman.civitai import credentials  # see `client`
        from civman.civitai.client import CivitaiClient
        from civman.civitai.transport import Transport

        token = credentials.check_shape(token)
        if self.settings.offline:
            raise UsageError("a key can only be proven online", hint="leave out --offline")
        with CivitaiClient(Transport(self.settings.civitai_url, token=token), clock=self._clock) as client:
            account = client.me()
        return account, credentials.save(self.settings, token, use_keyring=use_keyring)

    def doctor(self) -> "Iterator[Finding]":
        """What holds here and what is wrong, finding by finding."""
        from civman.manage.doctor import examine

        return examine(self.settings)
