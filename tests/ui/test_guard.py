"""The server answers its own page and nobody else, and only with what lies in its folder."""

import asyncio
import json
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import uvicorn

from hnkernels.home.folder import Home
from hnkernels.ui import server
from hnkernels.ui.guard import Guard


def ask(address, path="/", headers=None, data=None, method=None):
    """Status and body of an answer."""
    request = urllib.request.Request(address + path, data=data, headers=headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = Home(tmp_path_factory.mktemp("home"))
    made.make()
    (made.path / "secret.txt").write_text("a secret")
    (made.path.parent / "other.txt").write_text("a secret")
    (made.path / "link").symlink_to(made.path.parent / "other.txt")
    return made


@pytest.fixture(scope="module")
def address(home, serve):
    return serve(home)


def test_its_own_page_is_answered(address):
    status, body = ask(address, headers={"Origin": address})
    assert status == 200
    assert "hnkernels" in body


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1"])
@pytest.mark.parametrize("path", ["/", "/gradio_api/queue/join", "/gradio_api/upload", "/config"])
def test_other_origins_are_refused(address, origin, path):
    status, body = ask(address, path, {"Origin": origin}, data=b"{}" if path != "/" else None)
    assert status == 403
    assert body == f"Refused: a page from {origin!r} may not use this server.\n"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example", "169.254.169.254"])
def test_other_names_of_this_machine_are_refused(address, host):
    status, body = ask(address, headers={"Host": host})
    assert status == 403
    assert "open it under the address that it printed" in body


def test_what_another_page_embeds_is_refused(address):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert ask(address, "/config", headers)[0] == 403
    assert ask(address, "/", headers | {"Sec-Fetch-Mode": "navigate"})[0] == 200


def test_a_request_has_a_limit(address):
    status, body = ask(address, "/gradio_api/upload", {"Content-Length": str(10**12)}, data=b"x")
    assert status == 403
    assert "a request may have" in body


def test_no_other_page_may_frame_it_or_feed_it(address):
    with urllib.request.urlopen(address) as answer:
        policy = answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'self'" in policy
    assert "connect-src 'self'" in policy


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "//etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "/proc/self/environ"),
        *("{home}/secret.txt", "{home}/runs/../secret.txt", "{home}/link", "{outside}/other.txt"),
    ],
)
@pytest.mark.parametrize("route", ["file=", "file/", "static/", "assets/", "stream/", "proxy="])
def test_no_file_is_given_out(home, address, path, route):
    place = path.format(home=home.path, outside=home.path.parent)
    for prefix in ("/gradio_api/", "/"):
        _, body = ask(address, f"{prefix}{route}{place}")
        assert "a secret" not in body
        assert "root:" not in body


def test_an_uploaded_name_stays_a_name(home, address):
    for name in ("../../../evil.pt", "/evil.pt", "..\\evil.pt"):
        body = (
            f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\nhello\r\n--x--\r\n"
        ).encode()
        status, answer = ask(
            address, "/gradio_api/upload", {"Content-Type": "multipart/form-data; boundary=x"}, data=body
        )
        assert status == 200
        assert all(Path(path).resolve().is_relative_to(home.path) for path in json.loads(answer))


def test_no_handler_is_offered_to_other_programs(address):
    status, body = ask(address, "/gradio_api/info")
    assert status == 200
    assert json.loads(body) == {"named_endpoints": {}, "unnamed_endpoints": {}}


@pytest.mark.parametrize("value", ["../../etc", "/etc", "missing", None, -1, {"path": "/etc/passwd"}])
def test_a_call_with_anything_else_than_a_browser_sends_gives_nothing_out(home, address, value):
    """A program that speaks Gradio's protocol may send what no browser would."""
    handlers = [one for one in json.loads(ask(address, "/config")[1])["dependencies"] if one["backend_fn"]]
    assert len(handlers) > 20
    before = sorted(home.path.rglob("*"))
    for one in handlers:
        call = {"data": [value] * len(one["inputs"]), "fn_index": one["id"], "session_hash": "s"}
        _, body = ask(
            address, "/gradio_api/run/predict", {"Content-Type": "application/json"}, json.dumps(call).encode()
        )
        assert "root:" not in body
        assert "a secret" not in body
        assert "Traceback" not in body
    assert sorted(home.path.rglob("*")) == before


def test_other_machines_are_let_in_with_a_password_alone(home):
    with pytest.raises(ValueError, match="--listen lets other machines in; give --auth USER:PASSWORD"):
        server.serve(home, host="0.0.0.0")


def test_a_password_is_asked_for(home):
    app = server.application(home, frozenset(), ("user", "right"))
    listener = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        assert ask(address, "/config")[0] == 401
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert ask(address, "/login", form, data=b"username=user&password=wrong")[0] == 400
        assert ask(address, "/login", form, data=b"username=user&password=right")[0] == 200
    finally:
        running.should_exit = running.force_exit = True
        thread.join()


def test_a_second_server_on_a_home_is_told_of_the_first(home):
    told = r"a server runs on .* already: open http://127\.0\.0\.1:7860"
    with server._alone(home.path, "http://127.0.0.1:7860"), pytest.raises(ValueError, match=told):
        server.serve(home, port=0, open_browser=False)
    with server._alone(home.path, "http://127.0.0.1:1"):
        pass


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1"])
def test_an_address_that_is_not_this_machines(home, host):
    with pytest.raises(ValueError, match="no port can be opened"):
        server.serve(home, host=host, auth=("a", "b"), open_browser=False)


def test_a_web_socket_from_elsewhere_is_closed():
    sent = []

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        raise AssertionError("was let through")

    scope = {"type": "websocket", "headers": [(b"host", b"127.0.0.1:1"), (b"origin", b"http://evil.example")]}
    asyncio.run(Guard(app, server.LOCAL, 10)(scope, None, send))
    assert sent[0]["type"] == "websocket.close"
