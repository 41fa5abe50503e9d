"""Credentials are known by their values: no file, message or refusal has one, and none goes where it does not belong."""

from __future__ import annotations

import asyncio
import base64
import gzip
import html
import json
import os
import resource
import sqlite3
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, quote_plus

import pytest
import yaml
from aiohttp import web
from click.testing import CliRunner
from command import run_command
from fake_server import body, content, error
from planted_run import spec, truthful, truthful_server
from root import ROOT

import saeval
from saeval import LLMError, SpecError
from saeval._util.secrets import names_secret, placeholder, register_secret, without_values
from saeval.cli import main
from saeval.plugin import Request, without_secrets
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task
from saeval.task.spec.document import SpecDocument
from saeval.task.spec.validation import refuse_secrets

KEY = 'zq7/canary"4Xw1+b9K%d0tR'  # has what URLs, JSON, HTML and base64 write differently
SMALL = {"baselines": [], "scorers": {"detection": {}}, "latents": {"n": 4, "min_windows": 20}}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)
    for name in ("SAEVAL_ALLOW_ENV", "SAEVAL_ALLOW_HOST"):
        monkeypatch.setenv(name, "")


def spellings(value):
    forms = [value, quote(value, safe=""), quote_plus(value), json.dumps(value)[1:-1], quote(value, safe="").lower()]
    for before in ("", "a", "ab"):
        forms.append(base64.b64encode(f"{before}{value}".encode()).decode().strip("=")[4:-4])
    return forms


def everything(folder):
    """All that a run wrote, unpacked: bytes of files, kept answers, and tables."""
    texts = [file.read_bytes().decode(errors="replace") for file in sorted(folder.rglob("*")) if file.is_file()]
    for file in folder.rglob("calls.sqlite"):
        texts += [row[0] for row in sqlite3.connect(file).execute("SELECT answer FROM kept")]
    for file in folder.rglob("results.json"):
        run = saeval.read(file.parent)
        texts += [
            json.dumps(t.to_pylist(), default=str)
            for t in (run.calls, run.judgements, run.explanations, run.latent_scores)
        ]
    return "\n".join(texts)


# --- what is written and shown ---


def echoing(request, text):
    """Answer with the key that came, spelled in all ways, as a careless proxy does."""
    key = request.headers["Authorization"].removeprefix("Bearer ")
    said = " ".join([text, key, quote(key, safe=""), base64.b64encode(f"Bearer {key}".encode()).decode()])
    return content(said)(request)


@pytest.mark.parametrize("variable", ["LAB_AUTH", "MY_LAB_API_KEY"])
def test_key_that_a_server_echoes_is_in_no_file_in_any_spelling(tmp_path, monkeypatch, capfd, variable):
    monkeypatch.setenv(variable, KEY)
    monkeypatch.setenv("SAEVAL_ALLOW_ENV", variable)
    explaining = {"messages": []}

    def fault(request, number):
        explaining["messages"] = request["messages"]
        return lambda r, n=number, m=request["messages"]: (
            echoing(r, truthful(m)) if n % 4 else error(400, f"{KEY} {quote(KEY)}")(r)
        )

    with truthful_server() as server:
        server.chooses = fault
        role = {
            "model": "openai_compatible/m",
            "api_base": server.url,
            "api_key_env": variable,
            "max_tokens": 100,
            "retries": 0,
        }
        result = saeval.run(spec(server, **SMALL, llms={"explainer": role, "judge": role}), out=tmp_path / "run")
        assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)
    assert result.cells[0].counts["explained"] >= 2
    written = everything(tmp_path) + "".join(capfd.readouterr())
    assert "…" in written and [s for s in spellings(KEY) if s in written] == []


def test_credentials_are_known_by_value_and_placeholders_are_none(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pr0xyPassw0rd@10.0.0.1:3128")
    monkeypatch.setenv("VLLM_API_KEY", "EMPTY")
    monkeypatch.setenv("SSH_KEY", os.path.realpath(__file__))
    monkeypatch.setenv("DB_PASSWORD", "short")
    assert without_secrets("via pr0xyPassw0rd") == "via …"
    assert without_secrets(f"EMPTY short {os.path.realpath(__file__)}") == f"EMPTY short {os.path.realpath(__file__)}"
    assert without_values(f"a {register_secret('wholly-0rdinary words')} b") == "a … b"
    assert all(
        map(
            placeholder,
            ["EMPTY", "none", "not-needed", "no-key-required", "fake-api-key", "your_api_key", "xxxxxxxxxxxx"],
        )
    )


def test_words_of_a_model_that_only_look_like_a_key_are_kept():
    assert (
        without_values("fires on api keys such as sk-live-1234567890") == "fires on api keys such as sk-live-1234567890"
    )


# --- specs ---


NAMES = [
    "aws_secret_access_key",
    "aws_session_token",
    "azure_ad_token",
    "token",
    "Cookie",
    "private_token",
    "api_token",
    "Ocp-Apim-Subscription-Key",
    "bearer",
    "hf_token",
    "passwd",
    "pass",
    "pwd",
    "private_key",
    "access_key",
    "sas",
    "session_token",
    "x-access-key",
    "apiKey",
    "X-Auth",
    "client_secret",
    "set-cookie",
    "Proxy-Authorization",
    "subscription-key",
    "jwt",
    "otp-psk",
    "SharedAccessSignature",
]
HARMLESS = [
    "max_tokens",
    "stop_token_ids",
    "bos_token",
    "top_p",
    "api_key_env",
    "budget_tokens",
    "user",
    "seed",
    "response_format",
    "logit_bias",
    "keyword",
]


def test_names_of_credentials_are_known_and_others_are_not():
    assert [name for name in NAMES if not names_secret(name, of_model=True)] == []
    assert [name for name in HARMLESS if names_secret(name, of_model=True)] == []


CANARY = "quietcanaryvalue"
HELD = {
    **{name: {"extra": {name: CANARY}} for name in NAMES}, "header": {"extra": {"extra_headers": {"X-Lab-Token": CANARY}}},
    "list": {"extra": {"headers": [{"cookie": f"a={CANARY}"}]}}, "query": {"api_base": f"http://127.0.0.1/v1?api_key={CANARY}"},
    "user": {"api_base": f"http://user:{CANARY}@127.0.0.1/v1"}, "only password": {"api_base": f"http://:{CANARY}@127.0.0.1/v1"},
    "misspelled": {"api_base": f"http//user:{CANARY}@x"}, "wrong scheme": {"api_base": f"httpss://user:{CANARY}@x/v1"},
    "random": {"extra": {"x-lab": f"q1w2e3r4t5y6u7i8{CANARY}"}}, "nested address": {"extra": {"proxy": f"http://me:{CANARY}@127.0.0.1"}},
    "shape": {"extra": {"user": f"ghp_{CANARY}0123456789"}}, "prefix": {"extra": {"note": f"Bearer {CANARY}"}},
    "name": {f"hf_{CANARY}0123": 1}, "looked up": {"extra": {"user": "os.environ/AWS_PROFILE", "x": CANARY}},
}  # fmt: skip


@pytest.mark.parametrize("model", ["openai/x", "openai_compatible/x"])
def test_credential_in_a_spec_is_refused_by_name_shape_or_place_and_not_repeated(model):
    kept = []
    for name, options in HELD.items():
        if (name, model) == ("looked up", "openai_compatible/x"):
            continue  # only litellm looks secrets up
        role = {"model": model, "api_base": "http://127.0.0.1:9/v1", **options}
        with pytest.raises(SpecError) as refused:
            load_task(spec_of(role), registry=Registry())
            kept.append(name)
        assert CANARY not in str(refused.value), name
    assert kept == []


def spec_of(role, **changes):
    class Nowhere:
        url = "http://127.0.0.1:9/v1"

    return spec(Nowhere(), **SMALL, llms={"explainer": role, "judge": role}, **changes)


def test_credential_of_the_environment_in_a_spec_is_refused_wherever_it_is(monkeypatch):
    monkeypatch.setenv("LAB_PASSWORD", KEY)
    for changes in ({"description": f"ours: {KEY}"}, {"matrix": {"a": [quote(KEY, safe=""), "b"]}}):
        with pytest.raises(SpecError, match="credential of your environment") as refused:
            load_task(spec_of({"model": "openai/x"}, **changes), registry=Registry())
        assert "canary" not in str(refused.value)


@pytest.mark.parametrize("file", sorted(ROOT.glob("tasks/**/*.yaml")), ids=lambda file: file.stem)
def test_shipped_specs_hold_nothing_that_looks_like_a_credential(file):
    refuse_secrets(SpecDocument(yaml.safe_load(file.read_text()), {}))


def test_placeholders_and_ordinary_options_are_no_credentials():
    role = {
        "model": "openai_compatible/x",
        "api_base": "http://127.0.0.1:9/v1",
        "extra": {"api_key": "EMPTY", "stop_token_ids": [1], "user": "me"},
    }
    assert load_task(spec_of(role), registry=Registry()).roles["judge"]


@pytest.mark.parametrize(
    "assignment",
    [
        f"x={CANARY}: [",
        f"OPENAI_API_KEY:{CANARY}",
        f"llms.judge.api_base=http//u:{CANARY}@x",
        f"llms.judge.token={CANARY}",
    ],
)
def test_refusal_of_an_assignment_does_not_quote_it(tmp_path, assignment):
    (tmp_path / "task.yaml").write_text(
        yaml.safe_dump(spec_of({"model": "openai_compatible/x", "api_base": "http://127.0.0.1:9/v1"}))
    )
    done = run_command("validate", "--task", "task.yaml", "--set", assignment, cwd=tmp_path, code=2)
    assert CANARY not in done.stdout + done.stderr


# --- what a spec may name, and where keys go ---


@pytest.mark.parametrize("variable", ["GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "HOME", "lab_api_key", "X_API_KEY\n"])
def test_spec_may_name_no_other_variable_than_api_keys_unless_allowed(tmp_path, variable, monkeypatch):
    monkeypatch.setenv(variable.strip(), "value-of-the-variable")
    with truthful_server() as server:
        role = {"model": "openai_compatible/m", "api_base": server.url, "api_key_env": variable}
        with pytest.raises(SpecError):
            load_task(spec(server, llms={"explainer": role, "judge": role}), registry=Registry())
        assert not server.calls


def test_allowed_variable_is_sent_and_the_refusal_says_how_to_allow_it(tmp_path):
    with truthful_server() as server:
        role = {"model": "openai_compatible/m", "api_base": server.url, "api_key_env": "LAB_AUTH"}
        (tmp_path / "task.yaml").write_text(
            yaml.safe_dump(spec(server, **SMALL, llms={"explainer": role, "judge": role}))
        )
        run = ("run", "--task", "task.yaml", "--out", "run", "--display", "none", "--limit", "1")
        refused = run_command(*run, cwd=tmp_path, env={"LAB_AUTH": KEY}, code=2)
        assert "--allow-env LAB_AUTH" in refused.stderr and not server.calls
        run_command(*run, "--allow-env", "LAB_AUTH", cwd=tmp_path, env={"LAB_AUTH": KEY})
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}


FOREIGN = {
    "openai_compatible": {"model": "openai_compatible/m", "api_key_env": "OPENROUTER_API_KEY", "api_base": "https://evil.test/v1"},
    "no encryption": {"model": "openai_compatible/m", "api_key_env": "OPENROUTER_API_KEY", "api_base": "http://openrouter.ai/v1"},
    "like the provider": {"model": "openai_compatible/m", "api_key_env": "OPENROUTER_API_KEY", "api_base": "https://openrouter.ai.evil.test/v1"},
    "other service": {"model": "openai_compatible/m", "api_key_env": "DATADOG_API_KEY", "api_base": "https://evil.test/v1"},
    "litellm": {"model": "openai/gpt-4o", "api_base": "https://evil.test/v1"}, "no provider": {"model": "gpt-4o", "api_base": "https://evil.test/v1"},
    "alias": {"model": "text-completion-openai/x", "api_base": "https://evil.test/v1"}, "unknown": {"model": "newprovider/x", "api_base": "https://evil.test/v1"},
    "anthropic": {"model": "anthropic/claude-3", "api_base": "https://api.openai.com/v1"},
    "in extra": {"model": "openai/gpt-4o", "extra": {"base_url": "https://evil.test/v1"}},
    "deep in extra": {"model": "hosted_vllm/x", "api_base": "http://127.0.0.1/v1", "extra": {"fallbacks": [{"model": "openai/x", "api_base": "https://evil.test"}]}},
    "another provider": {"model": "hosted_vllm/x", "api_base": "https://evil.test/v1", "extra": {"custom_llm_provider": "openai"}},
    "backslash": {"model": "openai/gpt-4o", "api_base": "https://evil.test\\.api.openai.com/v1"},
}  # fmt: skip


@pytest.mark.parametrize("role", FOREIGN.values(), ids=FOREIGN.keys())
def test_known_key_goes_to_its_provider_and_this_machine_only(role, monkeypatch):
    for name in ("OPENROUTER_API_KEY", "DATADOG_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, KEY)
    with pytest.raises(SpecError, match=r"would be sent to|have the form https://HOST"):
        load_task(spec_of(role), registry=Registry())
    if "evil.test/" in role.get("api_base", ""):
        host = role["api_base"].split("/")[2]
        monkeypatch.setenv("SAEVAL_ALLOW_HOST", f"other.test,{host.upper()}")
        assert load_task(spec_of(role), registry=Registry())


GOOD = {
    "openrouter": {"model": "openai_compatible/m", "api_key_env": "OPENROUTER_API_KEY", "api_base": "https://openrouter.ai/api/v1"},
    "own server": {"model": "openai_compatible/m", "api_key_env": "LAB_API_KEY", "api_base": "http://gpu7.lab.test:8000/v1"},
    "loopback": {"model": "openai/gpt-4o", "api_base": "http://localhost:9/v1"}, "vllm": {"model": "hosted_vllm/x", "api_base": "http://gpu7.lab.test/v1"},
    "azure": {"model": "azure/x", "api_base": "https://ours.openai.azure.com"}, "ipv6": {"model": "openai/x", "api_base": "http://[::1]:9/v1"},
}  # fmt: skip


@pytest.mark.parametrize("role", GOOD.values(), ids=GOOD.keys())
def test_usual_addresses_need_no_permission(role, monkeypatch):
    for name in ("OPENROUTER_API_KEY", "LAB_API_KEY", "OPENAI_API_KEY", "HOSTED_VLLM_API_KEY", "AZURE_API_KEY"):
        monkeypatch.setenv(name, KEY)
    assert load_task(spec_of(role), registry=Registry())


def test_key_that_no_spec_named_is_not_sent_to_a_server_of_ones_own(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    role = {"model": "openai_compatible/m", "api_base": "http://gpu7.lab.test:8000/v1"}
    llm = load_task(spec_of(role), registry=Registry()).roles["judge"].part.plugin
    assert llm._key is None
    monkeypatch.setenv("SAEVAL_ALLOW_HOST", "gpu7.lab.test")
    assert load_task(spec_of(role), registry=Registry()).roles["judge"].part.plugin._key == KEY


# --- redirects and sizes ---


class Redirecting(BaseHTTPRequestHandler):
    """Sends whoever asks to another server, which writes down that it was asked."""

    to: str | None = None

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(dict(self.headers))
        self.send_response(307 if self.server.to else 200)
        self.send_header("Location", f"{self.server.to}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def redirecting(to=None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
    server.to, server.asked = to, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


REDIRECTED = [
    "openai_compatible/m",
    *(pytest.param(m, marks=pytest.mark.slow) for m in ("openai/m", "anthropic/m", "gemini/m", "mistral/m")),
]


@pytest.mark.parametrize("model", REDIRECTED)
def test_redirect_to_another_server_is_not_followed(monkeypatch, model):
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "MISTRAL_API_KEY"):
        monkeypatch.setenv(name, KEY)
    with redirecting() as (other, place), redirecting(place) as (server, url):
        role = {"model": model, "api_base": url, "retries": 0, "max_tokens": 100}
        llm = load_task(spec_of(role), registry=Registry()).roles["judge"].part.plugin
        with pytest.raises(LLMError, match="not followed") as refused:
            asyncio.run(llm.complete(Request.of("hi", max_tokens=5, temperature=0.0)))
        assert refused.value.lasting and server.asked and not other.asked


# --- sizes ---


def bomb(request):
    """Answer with 200 MB of spaces in 200 kB."""
    data = gzip.compress(b" " * (200 << 20), 1)
    return web.Response(body=data, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})


TOO_MUCH = {
    "bomb": bomb,
    "deep": body("[" * 200_000),
    "deep error": lambda r: web.Response(status=500, text="[" * 200_000),
}


@pytest.mark.parametrize("model", ["openai_compatible/m", pytest.param("openai/m", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_reply_beyond_all_bounds_is_an_error_that_is_tried_again(monkeypatch, fault, model):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with truthful_server() as server:
        server.faults = [fault, content("fine")]
        role = {"model": model, "api_base": server.url, "retries": 0, "max_tokens": 100}
        llm = load_task(spec_of(role), registry=Registry()).roles["judge"].part.plugin
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        async def ask():
            with pytest.raises(LLMError) as failed:
                await llm.complete(Request.of("hi", max_tokens=5, temperature=0.0))
            return failed.value, await llm.complete(Request.of("hi", max_tokens=5, temperature=0.0))

        error, reply = asyncio.run(ask())
        assert error.retryable and reply.text == "fine"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown < 450  # MB; the server, in this process, holds 200 of them


TYPED = [
    ("run", "quickstart", "{}"), ("run", "{}"), ("{}",), ("--{}",), ("run", "--{}"), ("run", "quickstart", "--limit", "{}"),
    ("run", "quickstart", "--limit={}"), ("export", "-f", "{}", "run"), ("report", "run", "LAB_API_KEY={}"),
    ("run", "quickstart", "--llm", "{}"), ("report", "run", "Bearer {}"),
]  # fmt: skip


@pytest.mark.parametrize("arguments", TYPED, ids=" ".join)
@pytest.mark.parametrize("key", ["qR7tY2wE9uI4oP1aS6dF", "sk-proj-8fGh2", "ghp_abcdefghijklmnopqrstuvwxyz"])
def test_key_that_was_typed_in_the_wrong_place_is_not_repeated(arguments, key):
    done = CliRunner().invoke(main, [argument.format(key) for argument in arguments])
    assert done.exit_code == 2 and key not in done.output


def test_directory_named_after_a_credential_is_refused_without_repeating_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_API_KEY", "qR7tY2wE9uI4oP1aS6dF")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["run", "judge-check", "--out", "qR7tY2wE9uI4oP1aS6dF"])
    assert (
        done.exit_code == 2
        and "a credential of your environment in its name" in done.output
        and "qR7tY2" not in done.output
    )
    assert not (tmp_path / "qR7tY2wE9uI4oP1aS6dF").exists()


def test_words_that_were_typed_in_the_wrong_place_are_repeated():
    for word in ("quick-start-2026", "layers.9.mlp", "EleutherAI/sae-llama-3-8b-32x"):
        assert word in CliRunner().invoke(main, ["run", "quickstart", word]).output


def spelled(value):
    """A credential as servers, proxies and logs spell it: escaped, encoded, and both, once and several times."""
    data, url, text = value.encode(), quote(value, safe=""), json.dumps(value)
    b64, login = base64.b64encode(data).decode(), base64.b64encode(f"user:{value}".encode())
    yield from (value, url, quote(value), quote_plus(value), quote(url, safe=""), quote(quote(url, safe=""), safe=""))
    yield from ("".join(f"%{b:02x}" for b in data), "".join(f"%25{b:02X}" for b in data), quote(text, safe=""))
    yield from (text, json.dumps(value, ensure_ascii=False), json.dumps(text), json.dumps(json.dumps({"k": text})))
    yield from (text.replace("/", "\\/"), text.replace("&", "\\u0026").replace("'", "\\u0027"), repr(value), repr(data))
    yield from ("".join(f"\\u{ord(c):04x}" for c in value), "".join(f"\\{b:03o}" for b in data), data.hex(":"))
    yield from (
        html.escape(value),
        html.escape(html.escape(value)),
        html.escape(text),
        html.escape(value).replace("x27", "39"),
    )
    yield from ("".join(f"&#{ord(c)};" for c in value), "".join(f"&#x{ord(c):X};" for c in value))
    yield from (
        b64,
        b64.rstrip("="),
        base64.urlsafe_b64encode(data).decode(),
        login.decode(),
        quote(login.decode(), safe=""),
    )
    yield from (base64.b64encode(login).decode(), base64.b64encode(json.dumps({"key": value}).encode()).decode())
    yield from (base64.b64encode(url.encode()).decode(), base64.b64encode(value.encode("utf-16-le")).decode())
    yield base64.encodebytes(b"x" * 40 + data + b"y" * 40).decode()
    yield from (data.hex(), data.hex().upper(), data.hex(" "), base64.b32encode(data).decode())


AWKWARD = [
    KEY,
    "plainhexabcdef0123456789",
    "käse-schlüssel-ß-42x",
    "a b&c=d;e?f#g/h+i",
    "tab\there\\back",
    "it's'quoted`$x",
]


@pytest.mark.parametrize("key", AWKWARD)
def test_key_is_known_however_it_is_escaped_and_encoded(key):
    register_secret(key)
    for spelling in spelled(key):
        told = without_values(f"the key {spelling} is wrong")
        assert spelling not in told and "…" in told, spelling


def test_text_that_hides_no_key_stays_as_it_is():
    register_secret(KEY)
    for text in (
        "100% of c\\nats & dogs",
        "aGVsbG8gd29ybGQgaGVsbG8=",
        "deadbeefdeadbeefdeadbeef",
        "a%2Fb \\u00e4 &amp;",
        "x" * 5000,
    ):
        assert without_values(text) == text
