"""`library.account`: the CivitAI account and its API key."""

from typing import TYPE_CHECKING

from civman.errors import UsageError
from civman.library.context import Part

if TYPE_CHECKING:
    from civman.civitai.responses import Account


class AccountPart(Part):
    """Log in to CivitAI, log out, and show the current account."""

    def login(self, token: str, *, use_keyring: bool = True) -> "tuple[Account, str]":
        """Check the API key `token` with CivitAI and store it.

        Returns the key's account and a description of where the key is stored.

        Raises: NotAllowed (`bad-key`): CivitAI rejects the key. UsageError: civman is offline. ConfigError: `token`
        does not look like an API key.
        """
        # imported on first use: the import takes 0.3 s, which commands that need no network can skip
        from civman.civitai import credentials
        from civman.civitai.client import CivitaiClient
        from civman.civitai.transport import Transport

        settings = self._context.settings
        token = credentials.check_shape(token)
        if settings.offline:
            raise UsageError("checking an API key needs the network, but civman is offline", hint="leave out --offline")
        with CivitaiClient(Transport(settings.civitai_url, token=token), clock=self._context.clock) as client:
            account = client.me()
        return account, credentials.save(settings, token, use_keyring=use_keyring)

    def current(self) -> "Account":
        """Return the account of the API key in use. Raises: NotAllowed: `no-key` or `bad-key`."""
        return self._context.client.me()

    def logout(self) -> bool:
        """Remove the stored API key. Returns whether there was one."""
        from civman.civitai import credentials

        return credentials.forget(self._context.settings)
