"""A report is shown to whoever ran it: from disk, or on 127.0.0.1 to those who have the address, and to nobody else."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import subprocess
import sys
import webbrowser
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from made_run import made_run
from served import served

from saeval import InputError
from saeval.cli.group import main
from saeval.report.files import write_reports
from saeval.report.view import ReportServer


@pytest.fixture
def run_dir(tmp_path):
    """A run with a report, and files around it that are not for serving."""
    run = tmp_path / "run"
    write_reports(made_run(), run / "report")
    (run / "report" / "latents").mkdir(exist_ok=True)
    (run / "report" / "latents" / "0.js").write_text("saevalLatents(0,[]);")
    (run / "secret.html").write_text("secret")
    (run / "report" / "link.html").symlink_to(run / "secret.html")
    (run / "report" / "folder").symlink_to(run)
    return run


@pytest.fixture
def server(run_dir):
    with served(ReportServer(run_dir)) as server:
        yield server


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    return response.status, response.read(), response.headers


def test_address_that_is_printed_shows_the_report_and_its_files(server, run_dir):
    place = urlsplit(server.url)
    assert place.hostname == "127.0.0.1" and server.server_address[0] == "127.0.0.1"
    status, content, headers = ask(server, place.path)
    assert status == 200 and content == (run_dir / "report" / "index.html").read_bytes()
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    status, content, headers = ask(server, f"/{server.token}/latents/0.js?again=1")
    assert (status, content, headers["Content-Type"]) == (
        200,
        b"saevalLatents(0,[]);",
        "text/javascript; charset=utf-8",
    )
    status, content, headers = ask(server, place.path, "HEAD")
    assert (status, content) == (200, b"") and int(headers["Content-Length"]) > 1000


@pytest.mark.parametrize("path", ["/", "/index.html", "/x/index.html", "//index.html", "/%00/index.html", "*"])
def test_without_the_token_nothing_is_shown(server, path):
    status, content, _ = ask(server, path)
    assert (status, content) == (403, b"")


def test_token_is_long_and_another_one_each_time(run_dir):
    tokens = set()
    for _ in range(3):
        with ReportServer(run_dir) as server:
            tokens.add(server.token)
            assert len(server.token) >= 32
            assert (
                server.answer(f"/{server.token[:-1]}/index.html")[0]
                == server.answer(f"/{server.token}x/index.html")[0]
                == 403
            )
    assert len(tokens) == 3


@pytest.mark.parametrize(
    "place",
    [
        "../secret.html", "%2e%2e/secret.html", "..%2fsecret.html", "..%5csecret.html", "latents/../../secret.html", "latents/../index.html",
        "link.html", "folder/secret.html", "folder/report/index.html", "report.md", "leaderboard.parquet", "", ".", "latents",
        "no.html", "%00.html", "a" * 5000 + ".html", "//etc/passwd",
    ],
)  # fmt: skip
def test_nothing_but_pages_of_the_report_is_served(server, place, run_dir):
    status, content, _ = ask(server, f"/{server.token}/{place}")
    assert (status, content) == (404, b"")
    assert ask(server, f"/{server.token}{run_dir / 'secret.html'}")[0] == 404
    assert ask(server, f"/{server.token}/{run_dir / 'secret.html'}")[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", ""]
)
def test_name_that_was_rebound_to_this_machine_is_refused(server, host):
    path = urlsplit(server.url).path
    status, content, _ = ask(server, path, Host=host.format(port=server.server_port))
    assert (status, content) == (403, b"")
    assert ask(server, path, Host=f"localhost:{server.server_port}")[0] == 200


def test_request_with_two_hosts_or_none_is_refused(server):
    path, good = urlsplit(server.url).path, f"Host: 127.0.0.1:{server.server_port}\r\n"
    for hosts, status in (("", 403), (good + "Host: evil.example\r\n", 403), (good, 200)):
        with socket.create_connection(server.server_address, timeout=10) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\n{hosts}\r\n".encode())
            assert int(connection.makefile("rb").readline().split()[1]) == status


@pytest.mark.parametrize("path", ["{url}", "/", "/{token}/no.html"])
def test_every_answer_says_what_a_browser_may_do_with_it(server, path):
    headers = ask(server, path.format(url=urlsplit(server.url).path, token=server.token))[2]
    rules = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/=]+' 'strict-dynamic'", rules["script-src"])
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin" and headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers and "Python" not in headers["Server"]


def test_nothing_can_be_sent_to_it(server):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, urlsplit(server.url).path, method)[0] == 501


def test_page_with_other_scripts_is_refused(run_dir):
    (run_dir / "report" / "index.html").write_text("<script>alert(1)</script>")
    with pytest.raises(InputError, match="another version of saeval; `saeval report"):
        ReportServer(run_dir)


def test_port_that_is_taken_is_one_clear_sentence(server, run_dir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = CliRunner().invoke(main, ["view", str(run_dir), "--serve", "--port", str(port)])
    assert found.exit_code == 2 and "choose another --port" in found.output and "Traceback" not in found.output


@pytest.mark.parametrize("named", ["", "results.json"])
def test_view_opens_the_report_from_disk(run_dir, monkeypatch, named):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    found = CliRunner().invoke(main, ["view", str(run_dir / named)])
    assert found.exit_code == 0 and opened == [(run_dir / "report" / "index.html").as_uri()]


def test_run_without_a_report_is_one_clear_sentence(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    for further in ([], ["--serve"]):
        found = CliRunner().invoke(main, ["view", str(tmp_path), *further])
        assert found.exit_code == 2 and "`saeval report" in found.output


def test_command_serves_until_it_is_told_to_stop(run_dir):
    command = [sys.executable, "-u", "-m", "saeval", "view", str(run_dir), "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        place = urlsplit(process.stdout.readline().split()[1])
        connection = http.client.HTTPConnection(place.netloc, timeout=10)
        connection.request("GET", place.path)
        assert connection.getresponse().status == 200
        connection.request("GET", "/")
        assert connection.getresponse().status == 403
        process.send_signal(signal.SIGTERM)  # tests in a background shell start it with SIGINT ignored
        try:
            _, said = process.communicate(timeout=10)
        finally:
            process.kill()
    assert (process.returncode, said) == (0, "")
