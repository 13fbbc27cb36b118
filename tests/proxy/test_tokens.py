"""Tokens: what verifies, what never does, and under which keys a verified one can be denied."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from jwt import PyJWK
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.utils import der_to_raw_signature, raw_to_der_signature

from offboard_worker.config import IssuerSettings, ProxySettings
from offboard_worker.denylist.facts import (
    Fact,
    email_key,
    first_killer,
    person_key,
    session_key,
    subject_key,
    token_key,
)
from offboard_worker.errors import ConfigError, SourceUnavailable
from offboard_worker.proxy import jwks
from offboard_worker.proxy import keys as key_folder
from offboard_worker.proxy.jwks import suits
from offboard_worker.proxy.keys import ensure_signing_key, new_signing_key
from offboard_worker.proxy.tokens import BadToken, TokenVerifier, VerifiedToken, _signed, mint
from tests.shared_material import shared

ISS = "https://idp.example.com"
NOW = 1_800_000_000.0
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class Idp:
    """An identity provider's key set behind real HTTP."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(65537, 2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.ed = Ed25519PrivateKey.generate()
        self.keys = [
            {**RSAAlgorithm.to_jwk(self.rsa.public_key(), True), "kid": "r", "use": "sig", "alg": "RS256"},
            {**ECAlgorithm.to_jwk(self.ec.public_key(), True), "kid": "e"},
            {**OKPAlgorithm.to_jwk(self.ed.public_key(), True), "kid": "d"},
            {**RSAAlgorithm.to_jwk(self.rsa.public_key(), True), "kid": "enc", "use": "enc"},
        ]
        self.fetched = 0
        self.status = 200
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.fetched += 1
        return web.json_response({"keys": self.keys}, status=self.status)

    def token(self, algorithm: str = "RS256", kid: str | None = None, typ: str = "at+jwt", **claims: Any) -> str:
        key, own_kid = {"RS256": (self.rsa, "r"), "ES256": (self.ec, "e"), "EdDSA": (self.ed, "d")}[algorithm]
        headers = {"typ": typ, "kid": own_kid if kid is None else kid}
        body = {**self.claims(), **claims}
        return jwt.encode({k: v for k, v in body.items() if v is not ...}, key, algorithm, headers)  # type: ignore[arg-type]

    @staticmethod
    def claims() -> dict[str, Any]:
        return {
            "iss": ISS,
            "aud": "api://proxy",
            "sub": "00u1",
            "login": "ada@example.com",
            "email": "Ada@Example.com",
            "sid": "s1",
            "jti": "j1",
            "groups": ["eng", "other"],
            "iat": int(NOW) - 10,
            "exp": int(NOW) + 300,
        }


@pytest.fixture
async def idp() -> AsyncIterator[Idp]:
    idp = Idp()
    runner = web.ServerRunner(web.Server(idp.answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    idp.url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    yield idp
    await runner.cleanup()


def configured(jwks_url: str, **more: Any) -> ProxySettings:
    issuer = IssuerSettings(
        issuer=ISS, jwks_url=jwks_url, audience=("api://proxy",), roles={"eng": ("developer",)}, **more
    )
    return ProxySettings.model_validate({"issuers": {"corp": issuer.model_dump()}, "roles": {"developer": {}}})


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


Build = Callable[..., TokenVerifier]


@pytest.fixture
def build(tmp_path: Path, idp: Idp, session: aiohttp.ClientSession) -> Build:
    def build(clock: Callable[[], float] = lambda: NOW, **more: Any) -> TokenVerifier:
        return TokenVerifier(configured(idp.url, **more), ensure_signing_key(tmp_path), session, clock=clock)

    return build


def own(tmp_path: Path, **change: Any) -> str:
    keys = ensure_signing_key(tmp_path)
    _, claims = mint(keys, configured("http://127.0.0.1/"), "ada", generation=3, roles=["developer"], now=NOW)
    header = {"typ": change.pop("typ", "at+jwt"), "kid": change.pop("kid", keys.signer().kid)}
    body = {k: v for k, v in {**claims, **change}.items() if v is not ...}
    return jwt.encode(body, keys.signer().private, "EdDSA", header)  # type: ignore[arg-type]


async def refused(verifier: TokenVerifier, token: str) -> str:
    with pytest.raises(BadToken) as error:
        await verifier.verify(token)
    assert token not in str(error.value)
    return error.value.detail


async def test_our_own_token_carries_person_generation_and_jti(tmp_path: Path, build: Build) -> None:
    keys = ensure_signing_key(tmp_path)
    token, claims = mint(keys, configured("http://127.0.0.1/"), "ada", generation=3, roles=["developer"], now=NOW)
    verified = await build().verify(token)
    assert verified.identity.person == person_key("ada")
    assert verified.identity.generation == 3
    assert verified.identity.keys == (token_key(claims["iss"], claims["jti"]),)
    assert (verified.subject, verified.roles, verified.expires_at) == ("ada", ("developer",), claims["exp"])
    assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "typ": "at+jwt", "kid": keys.signer().kid}


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"gen": ...}, "bad-claims"),
        ({"gen": True}, "bad-claims"),
        ({"gen": -1}, "bad-claims"),
        ({"jti": ...}, "bad-claims"),
        ({"jti": ""}, "bad-claims"),
        ({"sub": ...}, "bad-claims"),
        ({"exp": ...}, "bad-claims"),
        ({"iat": ...}, "bad-claims"),
        ({"roles": "developer"}, "bad-claims"),
        ({"exp": int(NOW)}, "expired"),
        ({"nbf": int(NOW) + 60}, "not-yet-valid"),
        ({"iat": int(NOW) + 60}, "not-yet-valid"),
        ({"aud": "another"}, "bad-audience"),
        ({"aud": ...}, "bad-audience"),
        ({"typ": "JWT"}, "bad-type"),
        ({"typ": "secevent+jwt"}, "bad-type"),
        ({"kid": "../../etc/passwd"}, "unknown-key"),
        ({"kid": "' OR 1=1"}, "unknown-key"),
    ],
)
async def test_our_own_token_must_be_complete_and_in_its_time(
    tmp_path: Path, build: Build, change: dict[str, Any], detail: str
) -> None:
    assert await refused(build(), own(tmp_path, **change)) == detail


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_an_idp_token_carries_every_key_that_could_deny_it(idp: Idp, build: Build, algorithm: str) -> None:
    verified = await build(subject_claim="login").verify(idp.token(algorithm))
    assert set(verified.identity.keys) == {
        subject_key(ISS, "ada@example.com"),
        subject_key(ISS, "00u1"),
        email_key("ada@example.com"),
        session_key(ISS, "s1"),
        token_key(ISS, "j1"),
    }
    assert verified.identity.person is None
    assert verified.identity.issued_at == int(NOW) - 10
    assert verified.roles == ("developer",)


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"typ": "logout+jwt"}, "bad-type"),
        ({"typ": "JWT"}, "bad-type"),
        ({"events": {"x": {}}}, "bad-type"),
        ({"iss": "https://evil.example.com"}, "bad-issuer"),
        ({"aud": ["x", "y"]}, "bad-audience"),
        ({"exp": int(NOW)}, "expired"),
        ({"exp": 1e400}, "malformed"),
        ({"sub": ...}, "bad-claims"),
        ({"sub": 17}, "bad-claims"),
        ({"kid": "enc"}, "unknown-key"),
        ({"kid": "e"}, "unknown-key"),
        ({"kid": "nobody"}, "unknown-key"),
    ],
)
async def test_an_idp_token_with_a_fault_is_refused(
    idp: Idp, build: Build, change: dict[str, Any], detail: str
) -> None:
    assert await refused(build(), idp.token(**change)) in (detail, "bad-claims")


def _segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def test_the_header_never_chooses_the_key_or_the_algorithm(idp: Idp, build: Build) -> None:
    verifier, claims = build(), _segment(idp.claims())
    stranger = rsa.generate_private_key(65537, 2048)
    forged_jwk = RSAAlgorithm.to_jwk(stranger.public_key(), True)
    for extra in ({"jwk": forged_jwk}, {"jku": "http://127.0.0.1/evil"}, {"x5u": "http://127.0.0.1/evil"}):
        token = jwt.encode(idp.claims(), stranger, "RS256", {"typ": "at+jwt", "kid": "r", **extra})
        assert await refused(verifier, token) == "bad-signature"
    assert await refused(verifier, f"{_segment({'alg': 'none', 'typ': 'at+jwt'})}.{claims}.AA") == "bad-algorithm"
    assert await refused(verifier, f"{_segment({'alg': 'none', 'typ': 'at+jwt'})}.{claims}.") == "malformed"
    hmac = jwt.encode(idp.claims(), "k" * 64, "HS256", {"typ": "at+jwt", "kid": "r"})
    assert await refused(verifier, hmac) == "bad-algorithm"
    crit = jwt.encode(idp.claims(), idp.rsa, "RS256", {"typ": "at+jwt", "kid": "r", "crit": ["exp"], "exp": 1})
    assert await refused(verifier, crit) == "malformed"
    assert await refused(build(algorithms=("ES256",)), idp.token("RS256")) == "bad-algorithm"
    assert await refused(verifier, idp.token()[:-4] + "AAAA") == "bad-signature"
    assert await refused(verifier, idp.token() + "=") == "malformed"
    assert await refused(verifier, "a" * 20_000) == "malformed"


def test_hmac_can_not_even_be_configured() -> None:
    with pytest.raises(ValueError, match="algorithms"):
        configured("http://127.0.0.1/", algorithms=("HS256",))


async def test_other_spellings_of_a_token_are_denied_with_it(idp: Idp, build: Build) -> None:
    """ECDSA: (r, n-s) verifies as well as (r, s). A second signature over the same claims is another token."""
    token = idp.token("ES256")
    head, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    r, s = decode_dss_signature(raw_to_der_signature(raw, ec.SECP256R1()))
    other = der_to_raw_signature(encode_dss_signature(r, P256_ORDER - s), ec.SECP256R1())
    twin = f"{head}.{base64.urlsafe_b64encode(other).rstrip(b'=').decode()}"
    resigned = idp.token("RS256")
    assert len({token, twin, resigned}) == 3
    fact = Fact(token_key(ISS, "j1"), denied=True, expires_at=int(NOW) + 300)
    verifier = build()
    for spelling in (token, twin, resigned):
        verified = await verifier.verify(spelling)
        assert first_killer({fact.key: fact}, verified.identity, NOW) == fact


async def test_what_is_remembered_still_expires(tmp_path: Path, build: Build) -> None:
    now = [NOW]
    verifier = build(clock=lambda: now[0])
    token = own(tmp_path, exp=int(NOW) + 10)
    first = await verifier.verify(token)
    assert verifier.known(token) is first
    now[0] += 10
    assert await refused(verifier, token) == "expired"


async def test_a_token_of_a_retired_key_dies_though_it_was_remembered(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offboard_worker.proxy.tokens.FOLDER_EVERY", 0.0)
    verifier, token = build(), own(tmp_path)
    await verifier.verify(token)
    old = ensure_signing_key(tmp_path).signer().kid
    new_signing_key(tmp_path)
    assert isinstance(await verifier.verify(token), VerifiedToken)
    (tmp_path / f"{old}.pem").unlink()
    verifier._folder_at = 0
    assert await refused(verifier, token) == "unknown-key"
    assert isinstance(await verifier.verify(own(tmp_path)), VerifiedToken)


async def test_a_key_that_the_issuer_withdrew_kills_what_it_signed(idp: Idp, build: Build) -> None:
    verifier = build()
    token = idp.token("RS256")
    await verifier.verify(token)
    idp.keys = idp.keys[1:]
    _, remote = verifier._remote[ISS]
    remote._tried_at = time.monotonic() - jwks.COOL_DOWN
    assert await refused(verifier, idp.token(kid="unheard")) == "unknown-key"
    assert await refused(verifier, token) == "unknown-key"


async def test_invented_key_ids_do_not_flood_the_issuer(idp: Idp, build: Build) -> None:
    verifier = build()
    for number in range(20):
        assert await refused(verifier, idp.token(kid=f"invented-{number}")) == "unknown-key"
    assert idp.fetched == 1


async def test_the_key_set_is_believed_while_the_issuer_is_away_and_missed_if_it_never_came(
    idp: Idp, build: Build
) -> None:
    verifier = build()
    await verifier.verify(idp.token())
    idp.status = 500
    _, remote = verifier._remote[ISS]
    remote._fetched_at = time.monotonic() - 3600
    assert isinstance(await verifier.verify(idp.token("ES256")), VerifiedToken)
    remote._fetched_at = time.monotonic() - 3600 * 30
    with pytest.raises(SourceUnavailable):
        await verifier.verify(idp.token("EdDSA"))
    with pytest.raises(SourceUnavailable):
        await build().verify(idp.token())
    await verifier.close()


def test_a_key_set_comes_over_https_or_loopback_alone(session: aiohttp.ClientSession) -> None:
    with pytest.raises(ConfigError, match="jwks_url"):
        jwks.RemoteKeys("http://idp.example.com/keys", session, max_age=1, stale=1, on_change=lambda: None)


def test_signing_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    ensure_signing_key(folder)
    (file,) = folder.glob("*.pem")
    assert file.stat().st_mode & 0o777 == 0o600
    assert ensure_signing_key(folder).signer().kid == file.stem
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="read by others"):
        key_folder.SigningKeys(folder)


def test_an_unknown_role_is_not_signed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="administrator"):
        mint(
            ensure_signing_key(tmp_path),
            configured("http://127.0.0.1/"),
            "ada",
            generation=0,
            roles=["administrator"],
            now=NOW,
        )


def test_wycheproof_signatures() -> None:
    """Every vector with a public key and an algorithm that may be configured."""
    groups = json.loads(shared("suites/wycheproof/json_web_signature_test.json").read_text("utf-8"))["testGroups"]
    tried = wrong = 0
    for group in groups:
        public = group.get("public")
        if public is None:
            continue
        for test in group["tests"]:
            accepted = _accepts(public, test["jws"])
            tried += 1
            if accepted and test["result"] == "invalid":
                wrong += 1
                print("accepted", test["tcId"], test["comment"])
            if test["result"] == "valid" and _plain(public, test):
                assert accepted, (test["tcId"], test["comment"])
    assert tried > 300
    assert wrong == 0


def _plain(public: dict[str, Any], test: dict[str, Any]) -> bool:
    """Whether a valid vector is one that we must take: its key and algorithm are ones that can be configured."""
    try:
        algorithm = jwt.get_unverified_header(test["jws"])["alg"]
    except jwt.InvalidTokenError:
        return False
    return algorithm in ("RS256", "PS256", "ES256") and suits(public, algorithm) and ".." not in test["jws"]


def _accepts(public: dict[str, Any], jws: str) -> bool:
    from offboard_worker.proxy import tokens

    if not tokens._COMPACT.fullmatch(jws):
        return False
    try:
        header = tokens._object(jws.split(".")[0])
        algorithm = header.get("alg", "")
        if "crit" in header or algorithm not in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256"):
            return False
        if not suits(public, algorithm):
            return False
        _signed(jws, [PyJWK(public, algorithm).key], algorithm)
    except BadToken as error:
        return error.detail == "malformed"  # the vectors' payloads are not JSON: the signature was right
    except jwt.InvalidTokenError:
        return False
    except jwt.PyJWTError:
        return False
    return True
