"""Who may ask the service."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from service import assert_refused, body, service
from starlette.testclient import TestClient

from rerank.errors import InputError
from rerank.server import create_app
from rerank.server.keys import Keys, from_environment, from_file

SECRET = "0123456789abcdef-secret"


def test_keys_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"# ours\n\nteam {hashlib.sha256(SECRET.encode()).hexdigest()}\n")
    keys = from_file(str(file)) + from_environment(f"{SECRET}-other, ")
    with TestClient(create_app(service(keys=keys))) as client:
        for given in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": SECRET},
            {"Authorization": b"Bearer \xff"},
        ):
            for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
                refused = client.post(path, content=b"not even read", headers=given)
                assert_refused(refused, 401, "unauthorized", "Authorization: Bearer KEY")
                assert refused.headers["www-authenticate"] == "Bearer"
            assert client.get("/metrics", headers=given).status_code == 401
            assert client.get("/v1/models", headers=given).status_code == 401
        for key in (SECRET, f"{SECRET}-other"):
            headers = {"Authorization": f"Bearer {key}"}
            assert client.post("/v1/rerank", json=body(), headers=headers).status_code == 200
            assert b"rerank_requests_total" in client.get("/metrics", headers=headers).content
        assert client.get("/health").status_code == 200
        assert client.get("/openapi.json").json()["security"] == [{"key": []}]
    assert SECRET not in repr(keys)


def test_a_key_is_its_bytes_whatever_its_letters() -> None:
    key = "schlüssel-clé-voilà"  # whose last byte alone would be white space
    with TestClient(create_app(service(keys=from_environment(key)))) as client:
        for given, status in ((key, 200), (key[:-1], 401)):
            headers = {"Authorization": f"Bearer {given}".encode()}
            assert client.get("/v1/models", headers=headers).status_code == status


def test_a_file_with_a_plain_key_is_refused_and_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"team {SECRET}\n")
    with pytest.raises(InputError, match="line 1: there should be a name and the SHA-256") as wrong:
        from_file(str(file))
    assert SECRET not in str(wrong.value)
    with pytest.raises(InputError, match="key 1 has 5 characters"):
        from_environment("short")
    assert not Keys()
