"""The server answers its own page and nobody else, and only with what lies in its folder."""

import json
import os
import urllib.error
import urllib.request

import pytest

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


@pytest.fixture
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
def test_no_file_is_given_out(home, serve, tmp_path, path, route):
    (tmp_path / "other.txt").write_text("a secret")
    (home.path / "secret.txt").write_text("a secret")
    (home.path / "link").symlink_to(tmp_path / "other.txt")
    place = path.format(home=home.path, outside=tmp_path)
    for prefix in ("/gradio_api/", "/"):
        _, body = ask(serve(home), f"{prefix}{route}{place}")
        assert "a secret" not in body
        assert "root:" not in body


def test_an_uploaded_name_stays_a_name(home, serve, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(home.path / ".page"))
    boundary = "x"
    for name in ("../../../evil.pt", "/tmp/evil.pt", "..\\evil.pt"):
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            f"Content-Type: application/octet-stream\r\n\r\nhello\r\n--{boundary}--\r\n"
        ).encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        status, answer = ask(serve(home), "/gradio_api/upload", headers, data=body)
        if status == 200:
            assert all(os.path.realpath(path).startswith(str(home.path)) for path in json.loads(answer))
    assert not os.path.exists("/tmp/evil.pt")


def test_handlers_are_the_pages_own(address):
    status, body = ask(address, "/gradio_api/info")
    if status == 200:
        assert json.loads(body) == {"named_endpoints": {}, "unnamed_endpoints": {}}


@pytest.mark.parametrize("value", ["../../etc", "/etc", "missing"])
def test_a_call_with_another_name_is_refused_by_the_handler(home, serve, value):
    """A program that speaks Gradio's protocol may send what no browser would."""
    config = json.loads(ask(serve(home), "/config")[1])
    ids = [one["id"] for one in config["dependencies"] if len(one["inputs"]) == 1 and one["backend_fn"]]
    assert ids
    for number in ids[:8]:
        data = json.dumps({"data": [value], "fn_index": number, "session_hash": "s"}).encode()
        headers = {"Content-Type": "application/json"}
        _, body = ask(serve(home), "/gradio_api/run/predict", headers, data=data)
        assert "root:" not in body
    assert sorted(path.name for path in home.path.iterdir() if not path.name.startswith(".")) == sorted(
        ("runs", "networks", "data", "models", "pictures", "bin")
    )


def test_other_machines_are_let_in_with_a_password_alone(home):
    with pytest.raises(ValueError, match="--listen lets other machines in; give --auth USER:PASSWORD"):
        server.serve(home, host="0.0.0.0")


def test_a_password_is_asked_for(home, tmp_path):
    import socket
    import threading

    import uvicorn

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
    with server._alone(home.path, "http://127.0.0.1:7860"):
        with pytest.raises(ValueError, match=r"a server runs on .* already: open http://127\.0\.0\.1:7860"):
            server.serve(home, port=0, open_browser=False)
    with server._alone(home.path, "http://127.0.0.1:1"):
        pass


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1"])
def test_an_address_that_is_not_this_machines(home, host):
    with pytest.raises(ValueError, match="no port can be opened"):
        server.serve(home, host=host, auth=("a", "b"), open_browser=False)


def test_a_web_socket_from_elsewhere_is_closed():
    import asyncio

    sent = []

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        raise AssertionError("was let through")

    scope = {"type": "websocket", "headers": [(b"host", b"127.0.0.1:1"), (b"origin", b"http://evil.example")]}
    asyncio.run(Guard(app, server.LOCAL, 10)(scope, None, send))
    assert sent[0]["type"] == "websocket.close"
