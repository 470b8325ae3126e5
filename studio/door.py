"""Who may come in: by default this machine alone."""

import ipaddress
from dataclasses import dataclass, field

from shira_diffusion.errors import SettingError

HERE = "127.0.0.1"


@dataclass(frozen=True)
class Door:
    """Address and login of the page, and whether programs may come in through MCP.

    Raises `SettingError` where others could come in and neither a login nor the lack of one was
    asked for.
    """

    port: int = 7860
    listen: str | None = None
    auth: str | None = field(default=None, repr=False)
    no_auth: bool = False
    mcp: bool = False

    def __post_init__(self) -> None:
        if self.auth is not None and not all(self.login or ("",)):
            raise SettingError("--auth has to be USER:PASSWORD, with neither of them empty")
        if self.auth is not None and self.no_auth:
            raise SettingError("--auth and --no-auth are opposites; leave one of them out")
        if self.auth is not None and self.mcp:
            raise SettingError(
                "--mcp and --auth do not go together: the MCP server asks nobody for the login, "
                "and its tools fail behind one; leave one of them out"
            )
        if not self._is_private and self.auth is None and not self.no_auth:
            raise SettingError(
                f"--listen {self.host} lets others in: add --auth USER:PASSWORD, or --no-auth if "
                "anybody who can connect may generate, train and delete"
            )

    @property
    def host(self) -> str:
        """The address to bind to."""
        return self.listen or HERE

    @property
    def login(self) -> tuple[str, str] | None:
        """User and password, if one is asked for."""
        if self.auth is None:
            return None
        user, _, password = self.auth.partition(":")
        return user, password

    @property
    def _is_private(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
