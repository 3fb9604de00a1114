"""The identity provider: a login that works against a real one, and every forged answer refused."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("oidc_provider_mock")

import httpx
import oidc_provider_mock as mock
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from sagittal.database.connect import Database
from sagittal.errors import ConfigError, ServeError
from sagittal.protect import oidc
from sagittal.protect.oidc import Identity, Provider, Refusal, admit
from sagittal.protect.users import add_user, change_user

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the mock's own library

BACK = "https://ai.hospital.example/api/oidc/back"
ROLES = {"radiologists": "reader", "it": "administrator"}


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    users = [
        mock.User(sub="s-1", claims={"preferred_username": "Ada", "groups": ["staff", "radiologists"]}),
        mock.User(sub="s-2", claims={"preferred_username": "Bob", "groups": ["it", "radiologists"]}),
        mock.User(sub="s-3", claims={"preferred_username": "Eve", "groups": ["visitors"]}),
        mock.User(sub="s-4", claims={"email": "no-groups@example.org"}),
    ]
    with mock.run_server_in_thread(user_claims=users, require_nonce=True) as server:
        yield f"http://localhost:{server.server_port}"


@pytest.fixture
def provider(issuer: str) -> Iterator[Provider]:
    client = httpx.Client(timeout=10, trust_env=False)
    yield Provider(issuer, "sagittal", "a secret", roles=ROLES, client=client)
    client.close()


def approve(address: str, subject: str) -> dict[str, str]:
    """What the browser brings back after its user agreed at the provider."""
    answer = httpx.post(address, data={"sub": subject}, follow_redirects=False, trust_env=False)
    assert answer.status_code == 302
    assert answer.headers["location"].startswith(BACK)
    return {key: values[0] for key, values in parse_qs(urlsplit(answer.headers["location"]).query).items()}


def test_login_by_a_real_provider(provider: Provider, issuer: str) -> None:
    address, cookie = provider.start(BACK)
    asked = parse_qs(urlsplit(address).query)
    assert asked["code_challenge_method"] == ["S256"]
    assert cookie not in address
    identity = provider.finish(approve(address, "s-1"), cookie, BACK)
    assert identity == Identity(issuer, "s-1", "Ada", "reader")


def test_mightiest_of_several_roles_is_given(provider: Provider) -> None:
    address, cookie = provider.start(BACK)
    assert provider.finish(approve(address, "s-2"), cookie, BACK).role == "administrator"


@pytest.mark.parametrize("subject", ["s-3", "s-4"])
def test_who_is_in_no_known_group_is_refused(provider: Provider, subject: str) -> None:
    address, cookie = provider.start(BACK)
    with pytest.raises(Refusal, match="no group"):
        provider.finish(approve(address, subject), cookie, BACK)


def test_answer_of_another_browser_is_refused(provider: Provider) -> None:
    address, _ = provider.start(BACK)
    _, other = provider.start(BACK)
    answer = approve(address, "s-1")
    for cookie in (other, ""):
        with pytest.raises(Refusal, match="this browser"):
            provider.finish(answer, cookie, BACK)


def test_answer_with_an_error_or_from_another_issuer_is_refused(provider: Provider) -> None:
    address, cookie = provider.start(BACK)
    answer = approve(address, "s-1")
    with pytest.raises(Refusal, match="another provider"):
        provider.finish({**answer, "iss": "https://evil.example"}, cookie, BACK)
    with pytest.raises(Refusal, match="no code"):
        provider.finish({"state": answer["state"], "error": "access_denied"}, cookie, BACK)


def test_code_works_once_and_invented_ones_never(provider: Provider) -> None:
    address, cookie = provider.start(BACK)
    answer = approve(address, "s-1")
    with pytest.raises(Refusal, match="redeem"):
        provider.finish({**answer, "code": "invented"}, cookie, BACK)
    provider.finish(answer, cookie, BACK)
    with pytest.raises(Refusal, match="redeem"):
        provider.finish(answer, cookie, BACK)


# Answers of a provider that lies or was taken over --------------------------------------------------------------------

ISSUER = "https://login.example"


class Forger:
    """A provider whose every answer can be changed."""

    def __init__(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})
        self.keys = [self.key.as_dict(private=False)]
        self.metadata: dict[str, Any] = {
            "issuer": ISSUER,
            "authorization_endpoint": f"{ISSUER}/go",
            "token_endpoint": f"{ISSUER}/token",
            "jwks_uri": f"{ISSUER}/keys",
        }
        self.token = ""
        self.asked: list[str] = []
        self.form: dict[str, list[str]] = {}

    def answer(self, request: Any) -> Any:
        self.asked.append(request.url.path)
        if request.url.path == "/token":
            self.form = parse_qs(request.content.decode())
            return httpx.Response(200, json={"id_token": self.token, "token_type": "Bearer"})
        if request.url.path == "/keys":
            return httpx.Response(200, json={"keys": self.keys})
        return httpx.Response(200, json=self.metadata)


@pytest.fixture
def forger() -> Forger:
    return Forger()


@pytest.fixture
def log_in_by(forger: Forger) -> Callable[..., Identity]:
    """Log in with claims that are changed, signed by a key."""
    provider = Provider(
        ISSUER, "sagittal", roles=ROLES, client=httpx.Client(transport=httpx.MockTransport(forger.answer))
    )

    def log_in(key: Any = None, alg: str = "RS256", header: Any = None, **changes: Any) -> Identity:
        address, cookie = provider.start(BACK)
        asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        claims = {
            "iss": ISSUER, "aud": "sagittal", "sub": "s-9", "nonce": asked["nonce"], "iat": int(time.time()),
            "exp": int(time.time()) + 300, "groups": ["radiologists"], **changes,
        }  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        forger.token = jwt.encode(
            {"alg": alg, "kid": "one", **(header or {})}, claims, key or forger.key, algorithms=[alg]
        )
        return provider.finish({"code": "c", "state": asked["state"]}, cookie, BACK)

    return log_in


def test_honest_answer_is_taken_and_the_verifier_sent(log_in_by: Callable[..., Identity], forger: Forger) -> None:
    assert log_in_by() == Identity(ISSUER, "s-9", "s-9", "reader")
    assert re.fullmatch(r"[\w-]{43}", forger.form["code_verifier"][0])
    assert log_in_by(aud=["sagittal", "other"], azp="sagittal").role == "reader"


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example"},
        {"iss": None},
        {"aud": "another"},
        {"aud": None},
        {"aud": ["other", "sagittal"]},  # several, and no azp
        {"aud": ["other", "sagittal"], "azp": "other"},
        {"azp": "other"},
        {"nonce": "of-another-login"},
        {"nonce": None},
        {"exp": 1000},
        {"exp": None},
        {"iat": 99999999999},
        {"iat": None},
        {"sub": None},
        {"sub": ""},
        {"groups": "visitors"},
        {"groups": None},
        {"groups": {"radiologists": True}},
        {"groups": [["radiologists"]]},
    ],
)
def test_claims_that_do_not_fit_are_refused(log_in_by: Callable[..., Identity], changes: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        log_in_by(**changes)


def test_signature_of_another_key_is_refused(log_in_by: Callable[..., Identity]) -> None:
    with pytest.raises(Refusal, match="does not hold"):
        log_in_by(key=RSAKey.generate_key(2048, {"kid": "one"}))


def test_shared_secret_is_no_signature(log_in_by: Callable[..., Identity], forger: Forger) -> None:
    secret = OctKey.import_key(b"0" * 64, {"kid": "one"})
    forger.keys.append(secret.as_dict(private=True))  # a provider that shows a shared secret among its keys
    with pytest.raises(Refusal, match="does not hold"):
        log_in_by(key=secret, alg="HS256")


def test_unsigned_token_is_refused(log_in_by: Callable[..., Identity], forger: Forger) -> None:
    log_in_by()
    _, payload, _ = forger.token.split(".")

    forger_header = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    original = forger.answer

    def unsigned(request: Any) -> Any:
        forger.token = f"{forger_header}.{payload}."
        return original(request)

    provider = Provider(ISSUER, "sagittal", roles=ROLES, client=httpx.Client(transport=httpx.MockTransport(unsigned)))
    address, cookie = provider.start(BACK)
    state = parse_qs(urlsplit(address).query)["state"][0]
    with pytest.raises(Refusal, match="does not hold"):
        provider.finish({"code": "c", "state": state}, cookie, BACK)


def test_new_key_of_the_provider_is_fetched(
    log_in_by: Callable[..., Identity], forger: Forger, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in_by()
    new = RSAKey.generate_key(2048, {"kid": "two", "use": "sig"})
    forger.keys = [new.as_dict(private=False)]
    with pytest.raises(Refusal):  # not before half a minute: forged keys cannot make us ask again and again
        log_in_by(key=new, header={"kid": "two"})
    monkeypatch.setattr(oidc, "_REFETCH_S", 0.0)
    assert log_in_by(key=new, header={"kid": "two"}).subject == "s-9"


@pytest.mark.parametrize(
    "change", [{"issuer": "https://evil.example"}, {"token_endpoint": "http://login.example/token"}, {"jwks_uri": None}]
)
def test_provider_that_describes_itself_wrongly_is_not_used(
    log_in_by: Callable[..., Identity], forger: Forger, change: dict[str, Any]
) -> None:
    forger.metadata.update(change)
    with pytest.raises(ServeError, match="identity provider"):
        log_in_by()
    assert "/token" not in forger.asked


def test_provider_that_is_away_is_not_asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def away(request: Any) -> Any:
        asked.append(request.url.path)
        raise httpx.ConnectTimeout("away")

    provider = Provider(ISSUER, "sagittal", roles=ROLES, client=httpx.Client(transport=httpx.MockTransport(away)))
    for _ in range(5):
        with pytest.raises(ServeError, match="identity provider"):
            provider.start(BACK)
    assert len(asked) == 1
    monkeypatch.setattr(oidc, "_AWAY_S", 0.0)
    with pytest.raises(ServeError):
        provider.start(BACK)
    assert len(asked) == 2


def test_endless_answer_is_cut_off(forger: Forger, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(request: Any) -> Any:
        return httpx.Response(200, content=(b"x" * 65536 for _ in range(64)))

    provider = Provider(ISSUER, "sagittal", roles=ROLES, client=httpx.Client(transport=httpx.MockTransport(endless)))
    with pytest.raises(ServeError, match="too large"):
        provider.start(BACK)


def test_provider_without_tls_is_refused() -> None:
    with pytest.raises(ConfigError, match="https"):
        Provider("http://login.example", "sagittal", roles=ROLES)
    with pytest.raises(ConfigError, match="unknown role"):
        Provider(ISSUER, "sagittal", roles={"x": "boss"})


# Whom it lets in ------------------------------------------------------------------------------------------------------


def test_same_subject_is_the_same_user_in_todays_role(db: Database) -> None:
    first = admit(db, Identity(ISSUER, "s-1", "Ada", "reader"))
    again = admit(db, Identity(ISSUER, "s-1", "Ada B.", "engineer"))
    assert again.id == first.id
    assert again.role == "engineer"
    assert again.issuer == ISSUER


def test_local_user_of_the_same_name_is_another_person(db: Database) -> None:
    local = add_user(db, "ada", "administrator", password="bone window at dusk")
    admitted = admit(db, Identity(ISSUER, "s-1", "Ada", "reader"))
    assert admitted.id != local.id
    assert admitted.name == "ada 2"
    assert admit(db, Identity("https://other.example", "s-1", "Ada", "reader")).name == "ada 3"


def test_user_put_out_of_use_is_not_let_in(db: Database) -> None:
    user = admit(db, Identity(ISSUER, "s-1", "Ada", "reader"))
    change_user(db, user.id, active=False)
    with pytest.raises(Refusal, match="not in use"):
        admit(db, Identity(ISSUER, "s-1", "Ada", "reader"))


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "", "../..", "x" * 300])
def test_odd_names_become_names(db: Database, name: str) -> None:
    assert admit(db, Identity(ISSUER, "s-1", name[:100], "reader")).role == "reader"
