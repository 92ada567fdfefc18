"""Every request of the gateway; the calls and their types are generated from its OpenAPI document."""

from __future__ import annotations

import os

from . import local
from ._calls import Calls


class Rest(Calls):
    """The gateway of a mesh.

    A refusal raises `ProblemError`, with each wrong field and what would be right; a gateway that does not answer
    `UnreachableError`; an id that cannot be part of an address `ValueError`, before anything is sent.
    """

    @classmethod
    def sign_in(cls, url: str, username: str, password: str, timeout: float = 30) -> Rest:
        """Signs in with an account of the mesh's own issuer. The token ends by itself; sign in again for another."""
        rest = cls(url, timeout=timeout)
        rest.token = rest.login({"username": username, "password": password})["token"]
        return rest

    @classmethod
    def local(cls, data_dir: str | os.PathLike[str] | None = None, timeout: float = 30) -> Rest:
        """The mesh of `continuum up` on this machine, signed in as its first account."""
        folder = local.data_dir(data_dir)
        url = local.text(folder, "state/gateway/url")
        return cls.sign_in(url, "admin", local.text(folder, "state/identity/admin.password"), timeout)
