"""What an operator makes with C{nsc}: keys, signed accounts and users, and credentials files."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from pathlib import Path

import nkeys

# Without limits; -1 says so.  The system's account has no JetStream, and may not have any.
_LIMITS = {
    **dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1),
    "wildcards": True,
}
_JETSTREAM = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)


def make_key(kind: int) -> tuple[nkeys.KeyPair, str]:
    """A key pair, and its public key as NATS writes it."""
    pair = nkeys.from_seed(nkeys.encode_seed(os.urandom(32), kind))
    return pair, pair.public_key.decode()


def sign(claims: dict, signer: nkeys.KeyPair) -> str:
    """A JWT as NATS wants it."""

    def pack(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    claims = {"iat": int(time.time()), "iss": signer.public_key.decode(), **claims}
    digest = hashlib.sha256(json.dumps(claims).encode()).digest()
    claims["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    header = {"typ": "JWT", "alg": "ed25519-nkey"}
    text = ".".join(pack(json.dumps(part).encode()) for part in (header, claims))
    return f"{text}.{pack(signer.sign(text.encode()))}"


class Operator:
    """An operator with an account for JetStream, one for the system, and users of the first."""

    def __init__(self) -> None:
        self._key, name = make_key(nkeys.PREFIX_BYTE_OPERATOR)
        self._account, self.account = make_key(nkeys.PREFIX_BYTE_ACCOUNT)
        _, self._system = make_key(nkeys.PREFIX_BYTE_ACCOUNT)
        about = {"type": "operator", "version": 2, "system_account": self._system}
        self._jwt = sign({"sub": name, "name": "test", "nats": about}, self._key)
        self._revoked: dict[str, int] = {}

    def revoke(self, user: str) -> None:
        """From the next configuration on, what this user has is worth nothing."""
        self._revoked[user] = int(time.time()) + 1

    def config(self) -> str:
        """For nats-server: who the operator is, and the accounts."""
        accounts = []
        for account, name, more in (
            (self.account, "logs", _JETSTREAM),
            (self._system, "system", {}),
        ):
            about = {
                "type": "account",
                "version": 2,
                "limits": {**_LIMITS, **more},
                "revocations": self._revoked,
            }
            jwt = sign({"sub": account, "name": name, "nats": about}, self._key)
            accounts.append(f'{account}: "{jwt}"')
        return (
            f'operator: "{self._jwt}"\nsystem_account: {self._system}\n'
            f"resolver: MEMORY\nresolver_preload: {{ {', '.join(accounts)} }}\n"
        )

    def write_credentials(self, path: Path) -> tuple[str, str]:
        """A new user's; the public key, and the seed that nobody may see."""
        key, user = make_key(nkeys.PREFIX_BYTE_USER)
        about = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
        jwt = sign({"sub": user, "name": "front", "nats": about}, self._account)
        seed = key.seed.decode()
        new = path.with_suffix(".new")
        new.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
        new.rename(path)
        return user, seed
