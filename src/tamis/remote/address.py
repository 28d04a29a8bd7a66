"""Where a server is: a URL that was looked at before anything is sent to it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import PurePath
from urllib.parse import urlsplit

from tamis.errors import InvalidInput

_ENDINGS = (
    "/v1/completions", "/v1/ranking", "/v1/rerank", "/v2/rerank", "/v1/score", "/ranking", "/reranking", "/rerank",
    "/score",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Address:
    """A URL, in parts.

    Attributes:
        scheme: "http" or "https".
        netloc: Host and port.
        host: The host alone, in small letters.
        path: As given, "" instead of "/".
        query: As given, without the question mark; never shown.
    """

    scheme: str
    netloc: str
    host: str
    path: str
    query: str = ""

    @property
    def url(self) -> str:
        """What is asked."""
        return self.shown + (f"?{self.query}" if self.query else "")

    @property
    def shown(self) -> str:
        """What messages and rankings show."""
        return f"{self.scheme}://{self.netloc}{self.path}"

    @property
    def base(self) -> str:
        """What the server's other doors stand behind: the URL without a known path at its end.

        >>> parse("https://host/tei/v1/rerank?a=b").base, parse("https://host:80/").base
        ('https://host/tei', 'https://host:80')
        """
        known = next((ending for ending in _ENDINGS if self.path.endswith(ending)), "")
        return f"{self.scheme}://{self.netloc}{self.path.removesuffix(known)}"

    @property
    def loopback(self) -> bool:
        """Whether it is this machine, so that nothing sent to it is on a wire.

        >>> [parse(f"http://{host}").loopback for host in ("localhost", "127.9.9.9:80", "[::1]", "10.0.0.1", "local")]
        [True, True, True, False, False]
        """
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost" or self.host.endswith(".localhost")

    def under(self, *domains: str) -> bool:
        """Whether the host is one of the domains, or below one.

        >>> parse("https://ai.api.nvidia.com/v1").under("api.nvidia.com"), parse("https://evil-a.com").under("a.com")
        (True, False)
        """
        return any(self.host == domain or self.host.endswith("." + domain) for domain in domains)


def parse(url: str | PurePath | None) -> Address:
    """The address of a URL.

    Raises:
        InvalidInput: It is none, or it has a user, a password or a fragment in it.
    """
    text = "" if url is None else str(url)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or isinstance(url, PurePath) or parts.scheme not in ("http", "https") or port == 0:
        what = "no model" if url is None else "that"
        raise InvalidInput(
            f'mode="remote" takes a server\'s URL, such as "https://host/v1/ranking"; {what} is none. Hosted vendors '
            'need no URL: api="cohere", "jina" or "voyage".'
        )
    if "@" in parts.netloc:
        raise InvalidInput("The URL has a user or a password in it, which logs would show; pass the key as api_key=.")
    if parts.fragment or any(not char.isprintable() or char.isspace() for char in text):
        raise InvalidInput("The URL has a fragment (#...), a space or a control character in it; pass it without.")
    return Address(parts.scheme, parts.netloc, host, parts.path.rstrip("/"), parts.query)
