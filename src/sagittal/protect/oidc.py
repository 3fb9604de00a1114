"""OpenID Connect: an identity provider of the hospital vouches for users (authorization code with PKCE).

Standards: OpenID Connect Core 1.0 (3.1), Discovery 1.0, RFC 7636 (PKCE), RFC 9700 (best current practice).

Nothing is kept between the two halves of a login but one cookie. State, nonce and PKCE verifier are made from its random
value in one direction, so that what travels in addresses says nothing of the verifier, and a reply that is brought to
another browser finds no cookie there.
"""

from __future__ import annotations

import hmac
import json
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from sqlalchemy import select

from sagittal.database.connect import Database
from sagittal.database.schema import users as table
from sagittal.errors import ConfigError, ServeError
from sagittal.protect.roles import ROLES, check_role
from sagittal.protect.secret import make_secret
from sagittal.protect.users import User, add_user, change_user, plain_name, user_of

#: Signatures by private keys only: a shared secret, or none, is never taken for one (RFC 8725 3.1).
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
#: Clocks of two machines may differ by so much.
LEEWAY_S = 60
_MOST_BYTES = 2**20
_FRESH_S = 3600.0
_REFETCH_S = 30.0
#: A provider that did not answer is not asked again for so long: nobody's threads wait for it in a row.
_AWAY_S = 10.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Refusal(Exception):  # noqa: N818  (an answer that is no fault of the program)
    """The provider's answer lets nobody in; the text says why, for the log, without the user's data."""


@dataclass(frozen=True)
class Identity:
    """Whom the provider vouches for.

    Parameters
    ----------
    issuer, subject : str
        Together never given to another person.
    name : str
        As the provider calls the person.
    role : str
    """

    issuer: str
    subject: str
    name: str
    role: str


@dataclass
class _Known:
    """What the provider says of itself."""

    metadata: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    metadata_at: float = float("-inf")
    keys_at: float = float("-inf")
    failed_at: float = float("-inf")


class Provider:
    """One identity provider.

    Parameters
    ----------
    issuer : str
        Its address, https but for loopback; compared letter by letter.
    client_id, client_secret : str
        As registered there; the secret is empty for a public client.
    role_claim : str
        Claim that names groups or roles, dots lead inwards: ``"realm_access.roles"``.
    roles : mapping of str to str
        Value of that claim -> role here. Who has none of them is refused.
    scopes : str
    client : httpx.Client, optional

    Raises
    ------
    ConfigError
        If the address is not https, or a role is unknown.
    """

    def __init__(
        self,
        issuer: str,
        client_id: str,
        client_secret: str = "",
        *,
        role_claim: str = "groups",
        roles: Mapping[str, str],
        scopes: str = "openid profile email",
        client: httpx.Client | None = None,
    ) -> None:
        check_address(issuer, "oidc.issuer")
        for role in roles.values():
            check_role(role)
        self.issuer, self.client_id, self._secret = issuer, client_id, client_secret
        self._role_claim, self._roles, self._scopes = role_claim, dict(roles), scopes
        self._client = client or httpx.Client(timeout=10.0, follow_redirects=False)
        self._known, self._lock = _Known(), threading.Lock()

    def start(self, redirect_uri: str) -> tuple[str, str]:
        """Where the browser goes next, and the value of the cookie that it must bring back.

        Raises
        ------
        ServeError
            If the provider cannot be asked.
        """
        secret = make_secret()
        asked = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": redirect_uri,
            "scope": self._scopes,
            "state": _derive("state", secret),
            "nonce": _derive("nonce", secret),
            "code_challenge": _encode(sha256(_derive("verifier", secret).encode("ascii")).digest()),
            "code_challenge_method": "S256",
        }
        address = str(self._metadata()["authorization_endpoint"])
        return f"{address}{'&' if urlsplit(address).query else '?'}{urlencode(asked)}", secret

    def finish(self, answer: Mapping[str, str], cookie: str, redirect_uri: str) -> Identity:
        """Whom the provider vouches for, from what the browser brought back.

        Parameters
        ----------
        answer : mapping
            The query of the address: ``code``, ``state``, ``iss``, or ``error``.
        cookie : str
            From :meth:`start`.
        redirect_uri : str
            The same as there.

        Raises
        ------
        Refusal
            If state, issuer, code, signature, audience, nonce, times or role do not fit.
        ServeError
            If the provider cannot be asked.
        """
        if not cookie or not hmac.compare_digest(answer.get("state", ""), _derive("state", cookie)):
            raise Refusal("the answer does not belong to a login that this browser began")
        if "iss" in answer and answer["iss"] != self.issuer:  # RFC 9207 2.4
            raise Refusal("the answer comes from another provider")
        if "error" in answer or not answer.get("code"):
            raise Refusal("the provider gave no code")
        token = self._redeem(answer["code"], _derive("verifier", cookie), redirect_uri)
        claims = self._claims(token, _derive("nonce", cookie))
        role = self._role(claims)
        if role is None:
            raise Refusal("the provider names no group that has a role here")
        name = claims.get("preferred_username") or claims.get("email") or claims.get("name") or claims["sub"]
        return Identity(self.issuer, str(claims["sub"]), str(name)[:100], role)

    def _redeem(self, code: str, verifier: str, redirect_uri: str) -> str:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
            "client_id": self.client_id,
        }
        metadata = self._metadata()
        auth = None
        if self._secret:
            methods = metadata.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
            if "client_secret_basic" in methods:
                auth = httpx.BasicAuth(self.client_id, self._secret)
            else:
                form["client_secret"] = self._secret
        status, answer = self._fetch("POST", str(metadata["token_endpoint"]), data=form, auth=auth)
        if status != 200 or not isinstance(answer.get("id_token"), str):
            raise Refusal(f"the provider did not redeem the code (status {status})")
        return str(answer["id_token"])

    def _claims(self, token: str, nonce: str) -> dict[str, Any]:
        """The claims of an id_token whose signature, issuer, audience, nonce and times hold (Core 3.1.3.7)."""
        try:
            try:
                decoded = jwt.decode(token, self._keys(), algorithms=ALGORITHMS)
            except (JoseError, ValueError):  # perhaps by a key that is newer than the set that was fetched
                decoded = jwt.decode(token, self._keys(afresh=True), algorithms=ALGORITHMS)
            jwt.JWTClaimsRegistry(
                leeway=LEEWAY_S,
                iss={"essential": True, "value": self.issuer},
                aud={"essential": True, "value": self.client_id},
                nonce={"essential": True, "value": nonce},
                sub={"essential": True},
                exp={"essential": True},
                iat={"essential": True},
            ).validate(decoded.claims)
        except (JoseError, ValueError, TypeError) as error:
            raise Refusal(f"the id_token does not hold: {type(error).__name__}") from error
        claims = decoded.claims
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if (several or "azp" in claims) and claims.get("azp") != self.client_id:
            raise Refusal("the id_token was made for another client")
        return claims

    def _role(self, claims: Mapping[str, Any]) -> str | None:
        """The mightiest role that the claim gives."""
        value: Any = claims
        for part in self._role_claim.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        named = value if isinstance(value, list) else [value]
        given = {self._roles[one] for one in named if isinstance(one, str) and one in self._roles}
        return next((role for role in ROLES if role in given), None)

    def _metadata(self) -> dict[str, Any]:
        with self._lock:
            if time.monotonic() - self._known.metadata_at > _FRESH_S:
                address = self.issuer.rstrip("/") + "/.well-known/openid-configuration"
                status, said = self._fetch("GET", address)
                if status != 200 or said.get("issuer") != self.issuer:  # Discovery 4.3
                    raise ServeError("the identity provider does not describe itself, or as another issuer")
                for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                    try:
                        check_address(str(said.get(name, "")), name)
                    except ConfigError as error:
                        raise ServeError(f"the identity provider's {name} is missing or not https") from error
                self._known.metadata, self._known.metadata_at = said, time.monotonic()
            return self._known.metadata

    def _keys(self, *, afresh: bool = False) -> KeySet:
        metadata = self._metadata()
        with self._lock:
            age = time.monotonic() - self._known.keys_at
            if age > _FRESH_S or (afresh and age > _REFETCH_S):
                status, said = self._fetch("GET", str(metadata["jwks_uri"]))
                if status != 200 or not isinstance(said.get("keys"), list):
                    raise ServeError("the identity provider does not show its keys")
                self._known.keys, self._known.keys_at = said, time.monotonic()
            keys = [
                key
                for key in self._known.keys["keys"]
                if isinstance(key, dict) and key.get("kty") in ("RSA", "EC", "OKP") and key.get("use", "sig") == "sig"
            ]
        return KeySet.import_key_set({"keys": keys})

    def _fetch(
        self, method: str, address: str, *, data: dict[str, str] | None = None, auth: httpx.Auth | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of an answer of limited size."""
        if time.monotonic() - self._known.failed_at < _AWAY_S:
            raise ServeError("the identity provider did not answer just now")
        try:
            with self._client.stream(
                method, address, data=data, auth=auth, headers={"Accept": "application/json"}
            ) as answer:
                content = b""
                for piece in answer.iter_bytes():
                    content += piece
                    if len(content) > _MOST_BYTES:
                        raise ServeError("the identity provider's answer is too large")
            said = json.loads(content) if content else {}
        except (httpx.HTTPError, ValueError) as error:
            self._known.failed_at = time.monotonic()
            raise ServeError(f"the identity provider cannot be asked ({type(error).__name__})") from error
        return answer.status_code, said if isinstance(said, dict) else {}


def admit(db: Database, identity: Identity) -> User:
    """The user of an identity; made at the first login, in the role that the provider gives today.

    A local user of the same name is another person: names are told apart by a number, never merged.

    Raises
    ------
    Refusal
        If an administrator put the user out of use.
    """
    with db.read() as connection:
        row = connection.execute(
            select(table).where(table.c.issuer == identity.issuer, table.c.subject == identity.subject)
        ).first()
    if row is not None:
        if not row.active:
            raise Refusal("the user is not in use here")
        if row.role != identity.role:
            return change_user(db, row.id, role=identity.role)
        return user_of(row)
    base = "".join(sign if sign.isalnum() or sign in "._-+@ " else "-" for sign in plain_name(identity.name)).strip(
        " -._+@"
    )
    for number in range(1, 100):
        name = (base or "user") if number == 1 else f"{base or 'user'} {number}"
        try:
            return add_user(db, name, identity.role, issuer=identity.issuer, subject=identity.subject)
        except ConfigError:
            continue
    raise Refusal("no name is free for the user")


def check_address(address: str, what: str) -> None:
    """Refuse an address that is neither https nor on this machine.

    Raises
    ------
    ConfigError
        With what was found.

    >>> check_address("https://login.example.org", "issuer")
    """
    parts = urlsplit(address)
    if not parts.hostname or parts.scheme not in ("https", "http"):
        raise ConfigError(f"{what}: expected an address such as https://login.example.org, found '{address}'")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ConfigError(f"{what}: passwords and tokens need https; found http to {parts.hostname}")


def _derive(purpose: str, secret: str) -> str:
    return _encode(hmac.new(secret.encode("utf-8"), purpose.encode("ascii"), sha256).digest())


def _encode(value: bytes) -> str:
    return urlsafe_b64encode(value).rstrip(b"=").decode("ascii")
