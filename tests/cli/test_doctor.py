"""`saeval doctor` finds what is wrong, names keys without showing them, and verifies stores to the last byte."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from saeval.cli import doctor
from saeval.cli.group import main
from saeval.testing.planted import planted_store

CANARY = "sk-canary-1234567890abcdef"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)


def examined(*arguments, code=0):
    done = CliRunner().invoke(main, ["doctor", "--json", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return {finding["what"]: finding for finding in json.loads(done.output)}


def test_healthy_machine_has_nothing_wrong_and_shows_no_key(tmp_path):
    found = examined()
    assert {"python", "saeval", "torch", "litellm", "device", "cache", "stores", "network", "keys"} <= found.keys()
    assert "OPENAI_API_KEY" in found["keys"]["text"]
    plain = CliRunner().invoke(main, ["doctor"])
    assert plain.exit_code == 0 and "OPENAI_API_KEY" in plain.output
    assert CANARY not in plain.output + json.dumps(found)
    assert not (tmp_path / "cache").exists()  # looking changes nothing


@pytest.mark.parametrize("release", ["1.82.7", "1.82.8", "1.107.0"])
def test_malicious_release_is_wrong(monkeypatch, release):
    monkeypatch.setattr("saeval._util.releases.version", lambda _: release)
    found = examined(code=1)["malicious releases"]
    assert f"litellm {release} is a malicious release" in found["text"]


def test_package_that_is_missing_or_does_not_fit_is_wrong(monkeypatch):
    real = doctor.version

    def version(name):
        if name == "pydantic":
            raise doctor.PackageNotFoundError(name)
        return "3.0" if name == "transformers" else real(name)

    monkeypatch.setattr("saeval.cli.doctor.version", version)
    found = examined(code=1)
    assert "is not installed: pip install 'pydantic" in found["pydantic"]["text"]
    assert "version 3.0 is not supported: pip install 'transformers" in found["transformers"]["text"]


def test_store_is_verified_to_the_last_byte(tmp_path):
    planted_store(tmp_path / "store", documents=10)
    assert "all checksums match" in examined("--store", tmp_path / "store")["store"]["text"]
    file = tmp_path / "store" / "value.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert "value.npy: checksum does not match" in examined("--store", tmp_path / "store", code=1)["store"]["text"]
    file.write_bytes(data[:-1])
    assert "bytes instead of" in examined("--store", tmp_path / "store", code=1)["store"]["text"]
    assert "not a finished store" in examined("--store", tmp_path / "nowhere", code=1)["store"]["text"]


def test_store_in_the_cache_that_lacks_a_file_is_found(tmp_path):
    planted_store(tmp_path / "cache" / "stores" / "abc", documents=10)
    assert examined()["stores"]["text"] == "1 in the cache"
    (tmp_path / "cache" / "stores" / "abc" / "tokens.npy").unlink()
    assert "0 bytes instead of" in examined(code=1)["store"]["text"]


def test_cache_that_cannot_be_written_to_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", "/proc/saeval")
    assert "set SAEVAL_CACHE to another folder" in examined(code=1)["cache"]["text"]
