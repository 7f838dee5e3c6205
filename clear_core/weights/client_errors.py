"""What the client of the hub raises, in one sentence: the setting that it stumbled over, the hub's answer, the network.

The client is any huggingface_hub from 0.30 on. It uses requests, httpx or httpx2, so that one cause has three types
and three texts; none of these packages is imported here, and a setting is judged by its own value.
"""

from __future__ import annotations

import os
import re
from urllib import request
from urllib.parse import urlsplit

from ..environment import variable, variables
from .catalogue import REPOSITORY, hub_address
from .errors import printable

TIMEOUTS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
PROXIES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")

KNOWN_CODES = ("RepoNotFound", "GatedRepo")
"""X-Error-Code of an answer that is about the repository and not about the token."""


def explanation(error: Exception, token_sent: bool = False) -> str:
    """User text for an error of any version of the client."""
    status = status_of(error)
    if status == 401 and token_sent and error_code(error) not in KNOWN_CODES:
        return (
            f"the hub refused the token (HTTP 401: expired or not valid); log in again with `hf auth login`, or remove "
            f"it ({token_source()})"
        )
    if status in (401, 403):
        return (
            f"the hub refused it (HTTP {status}: gated, private or renamed); log in with `hf auth login` if your "
            f"account has access"
        )
    if status == 404:
        return f"the hub does not have it (HTTP 404); the repository {REPOSITORY} may have changed"
    if status is not None:
        return f"the hub answered with HTTP {status}; try again later"
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set, so the network is not used; unset it and start again"
    setting = wrong_setting(error)
    if setting:
        return setting
    if isinstance(error, OSError) and error.filename:
        return f"{printable(error.strerror)} ({printable(error.filename, 200)})"
    if is_network_error(error):
        return f"there is no connection to the hub, or it broke ({type(error).__name__})"
    return f"the package huggingface_hub failed ({type(error).__name__}: {printable(discreet(str(error)), 200)})"


def status_of(error: Exception) -> int | None:
    """The HTTP status of an error; None without an HTTP response."""
    return getattr(getattr(error, "response", None), "status_code", None)


def error_code(error: Exception) -> str:
    """The hub's own word for the reason; "" if it gives none."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    return headers.get("X-Error-Code") or ""


def is_network_error(error: Exception) -> bool:
    """Whether an error may come from the network, disk or hub, not from a bug."""
    return isinstance(error, OSError) or any(kind.__name__ in ("HTTPError", "InvalidURL") for kind in type(error).mro())


def wrong_setting(error: Exception) -> str | None:
    """The sentence for a setting that explains an error without an answer of the hub; None if none does."""
    said = words(error)
    judges = (wrong_transfer, wrong_timeout, wrong_token, wrong_proxy, wrong_endpoint, wrong_certificates, wrong_number)
    return next((sentence for judge in judges if (sentence := judge(said))), None)


def words(error: BaseException) -> str:
    """Types and texts of an error and of what caused it, in lower case."""
    found: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(found) < 10:
        found.append(f"{type(cause).__name__} {cause}")
        cause = cause.__cause__ or cause.__context__
    return " | ".join(found).lower()


def wrong_transfer(said: str) -> str | None:
    if "hf_transfer" not in said:
        return None
    why = "which is not installed" if "not available" in said else "which failed"
    return f"HF_HUB_ENABLE_HF_TRANSFER asks for the package hf_transfer, {why}; unset it and start again"


def wrong_timeout(said: str) -> str | None:
    for name in TIMEOUTS:
        value = variable(name)
        if (
            value
            and not re.fullmatch(r"\s*\+?0*[1-9][0-9]{0,5}\s*", value)
            and ("valueerror" in said or "time" in said)
        ):
            return f"{name} is {printable(value)!r}; expected a whole number of seconds, so correct or unset it"
    return None


def wrong_token(said: str) -> str | None:
    """A token goes into a header, which takes printable ASCII letters only. It is never shown."""
    if not any(word in said for word in ("codec", "header", "token", "errno")):
        return None
    try:
        from huggingface_hub import get_token

        token = get_token()
    except Exception:  # Whatever stops the token from being read is its setting's fault.
        return (
            f"the token for the hub cannot be read ({token_source()}); log in again with `hf auth login`, or remove it"
        )
    if not token or re.fullmatch("[!-~]+", token):
        return None
    return (
        f"the token for the hub holds letters that no token has ({token_source()}); copy it anew, log in again with "
        f"`hf auth login`, or remove it"
    )


def token_source() -> str:
    """Where the client has its token from, for a sentence."""
    given = next((name for name in ("HF_OIDC_RESOURCE", *TOKENS) if variable(name)), None)
    if given:
        return f"in {given}"
    try:
        from huggingface_hub import constants

        return f"in the file {printable(constants.HF_TOKEN_PATH, 300)}"
    except Exception:
        return "in HF_TOKEN"


def wrong_proxy(said: str) -> str | None:
    """A proxy's address may hold a password, so only its setting and the beginning are shown."""
    if request.proxy_bypass(urlsplit(hub_address()).hostname or ""):
        return None
    for kind, address in request.getproxies().items():
        if kind not in ("http", "https", "all"):
            continue
        begin, between, _ = address.partition("://")
        name = f"the proxy setting {kind}_proxy"
        if between and begin.lower() not in PROXIES:
            return f"{name} begins with {printable(begin)!r}; expected http://, https:// or socks5://"
        if begin.lower().startswith("socks") and "socks" in said:
            return (
                f"{name} begins with {printable(begin)!r}, and the package for SOCKS proxies is not installed or the "
                f"proxy does not answer; use an http:// proxy, or install PySocks and socksio"
            )
        if not web_address(address if between else f"http://{address}"):
            return f"{name} is no address; expected one like http://host:port"
        if "proxy" in said:
            return f"the proxy of {kind}_proxy does not answer or refuses; correct or unset the setting"
    return None


def wrong_endpoint(said: str) -> str | None:
    value = variables().get("HF_ENDPOINT")
    if value is None or (web_address(value) and value.partition("://")[0] in ("http", "https")):
        return None
    return f"HF_ENDPOINT is {discreet(printable(value, 200))!r}; expected an address like https://huggingface.co"


def wrong_certificates(said: str) -> str | None:
    for name in CERTIFICATES:
        value = variable(name)
        if value and not os.path.exists(value) and any(word in said for word in ("certificate", "filenotfound", "ssl")):
            return f"{name} is {printable(value, 200)!r}, which does not exist; correct or unset it"
        if value and ("sslerror" in said or "certificate" in said):
            return f"the certificates of {name} do not fit or cannot be read ({printable(value, 200)!r}); correct it"
    return None


def wrong_number(said: str) -> str | None:
    """Any other variable of the client whose value it could not read as a number."""
    for name, value in variables().items():
        ours = name.startswith(("HF_", "HUGGING")) and name not in TOKENS and value
        if ours and "valueerror" in said and repr(value).lower() in said:
            return f"{name} is {printable(value)!r}, which huggingface_hub does not take; correct or unset it"
    return None


def web_address(text: str) -> bool:
    """Whether a text has the form ``scheme://host`` or ``scheme://host:port``."""
    try:
        parts = urlsplit(text)
        return bool(parts.scheme and parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def discreet(text: str) -> str:
    """``text`` without tokens, and without names and passwords in addresses."""
    text = re.sub(r"//[^/@\s]*@", "//", text)
    return re.sub(r"(hf_|Bearer )\S+", r"\1…", text)
