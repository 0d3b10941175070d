"""Sends identity headers in every spelling through real gateways, and paths that lead elsewhere than they seem to. Looks at
what the service behind them receives.

    spoofing.py AUTH_ADDRESS TRAEFIK ENVOY <access-token

The gateways run with the files of deploy/gateways, on free ports of loopback. Exit code 1 where a header of the client
reached the service, or where somebody passed who must not.
"""

import http.server
import json
import pathlib
import posixpath
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

AUTH, TRAEFIK, ENVOY = sys.argv[1:4]
TOKEN = sys.stdin.read().strip()
CONFIGURATION = pathlib.Path(__file__).parents[2] / "deploy/gateways"
NAMES = ["X-Auth-Email", "X-Auth-Role", "X-Auth-Session", "X-Auth-Expires"]
SPOOFED = "spoofed-by-the-client"
# All of them are /cart for a service that decodes and resolves them.
DETOURS = [
    "/catalog/../cart", "/catalog/./../cart", "/catalog/%2e%2e/cart", "/catalog/.%2E/cart", "/catalog/..%2fcart",
    "/catalog%2f..%2fcart", "/catalog/..%5ccart", "/catalog/..\\cart", "/catalog/..;/cart", "/catalog/..;x=1/cart",
    "/catalog/x/../../cart", "/catalog//../cart", "//cart", "/%63art", "/catalog/..", "/catalog/../cart?optional=1",
]  # fmt: skip
NGINX = "daemon off; pid nginx.pid; worker_processes 1; events {} http { access_log off; include nginx.conf; }"


class Shop(http.server.BaseHTTPRequestHandler):
    """Answers with the headers that reached it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = json.dumps(self.headers.items()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Path", self.path)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        """A gateway that has let go of its connection is no error."""


def spellings():
    for name in NAMES:
        under = name.replace("-", "_")
        yield from [[name], [name.lower()], [name.upper()], [name, name], [name, name.lower()], [name, under]]
        yield from [[under], [under.upper()], [name.replace("-", "_", 1)], ["_".join(name.rsplit("-", 1))]]
        yield [name.replace("-", ".")]
    yield ["X_Auth_User"]  # none that the service answers


def normal(name):
    """The name as a service may read it: CGI and WSGI make HTTP_X_AUTH_EMAIL of all of them."""
    return name.lower().replace("_", "-").replace(".", "-")


def request(port, path, headers):
    lines = [f"GET {path} HTTP/1.1", "Host: shop.example", "Connection: close", *headers, "", ""]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall("\r\n".join(lines).encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    seen = json.loads(body[body.index(b"[") : body.rindex(b"]") + 1]) if b" 200 " in head.split(b"\r\n")[0] else None
    return int(head.split()[1]), head.decode().lower(), seen


def check(port):
    tried = 0
    for path, signed_in in [("/cart", True), ("/cart", False), ("/catalog", True), ("/catalog", False)]:
        bearer = [f"Authorization: Bearer {TOKEN}"] if signed_in else []
        for names in spellings():
            tried += 1
            status, head, seen = request(port, path, bearer + [f"{name}: {SPOOFED}" for name in names])
            case = f"{path} {'with' if signed_in else 'without'} a token, {names}"
            assert status == (401 if path == "/cart" and not signed_in else 200), f"{case}: {head}"
            for name, value in seen or []:
                assert SPOOFED not in value, f"{case}: reached the service as {name}"
            for wanted in NAMES if seen else []:
                values = [value for name, value in seen if normal(name) == wanted.lower()]
                assert len(values) <= 1 and bool("".join(values)) == signed_in, f"{case}: {wanted} is {values}"
    status, head, _ = request(port, "/cart", ["Authorization: Bearer nonsense"])
    assert status == 401 and "x-auth-reason: invalid" in head, f"a bad token: {head}"
    status, head, _ = request(port, "/cart?optional=1", [])
    assert status != 200, f"the client's own query: {head}"
    for path in DETOURS:
        tried += 1
        status, head, _ = request(port, path, [])
        reached = re.search(r"^x-path: (\S*)", head, re.MULTILINE)
        assert not (reached and resolved(reached[1]).startswith("/cart")), f"{path} without a token: reached the service"
    return tried


def resolved(path):
    """The path as a service may read it."""
    plain = urllib.parse.unquote(path.partition("?")[0]).replace("\\", "/")
    return "/" + posixpath.normpath(re.sub(";[^/]*", "", plain)).lstrip("/")


def configure(work, port, shop):
    """Puts addresses of this run in the place of those that the files have."""
    here = "{{address: 127.0.0.1, port_value: {}}}".format
    addresses = {
        "auth:8000": AUTH,
        "shop:8000": f"127.0.0.1:{shop}",
        "listen 8080": f"listen 127.0.0.1:{port}",
        "bind :8080": f"bind 127.0.0.1:{port}",
        ":8080 {": f":{port} {{\n\tbind 127.0.0.1",
        "{address: auth, port_value: 8000}": here(AUTH.split(":")[1]),
        "{address: shop, port_value: 8000}": here(shop),
        "{address: 0.0.0.0, port_value: 8080}": here(port),
    }
    for file in CONFIGURATION.iterdir():
        text = file.read_text()
        for written, used in addresses.items():
            text = text.replace(written, used)
        (work / file.name).write_text(text)
    (work / "main.conf").write_text(NGINX)


def start(command, work, port, log):
    process = subprocess.Popen(command, cwd=work, stdout=log, stderr=log, env={"PATH": "/usr/bin", "HOME": str(work)})
    for _ in range(300):
        try:
            if request(port, "/cart", [])[0] == 401:
                return process
        except OSError:
            pass
        time.sleep(0.05)
    process.kill()
    raise AssertionError("it does not start")


def commands(work, port):
    yield "traefik", [
        TRAEFIK, "--global.checkNewVersion=false", f"--entryPoints.web.address=127.0.0.1:{port}",
        "--entryPoints.web.http.aliasHeadersStrategy=delete", "--providers.file.filename=traefik-routes.yaml",
        "--providers.file.watch=false",
    ]  # fmt: skip
    yield "nginx", ["/usr/sbin/nginx", "-p", str(work), "-c", "main.conf", "-e", "stderr"]
    yield "caddy", ["/usr/bin/caddy", "run", "--config", "Caddyfile", "--adapter", "caddyfile"]
    yield "haproxy", ["/usr/sbin/haproxy", "-db", "-f", "haproxy.cfg"]
    yield "envoy", [ENVOY, "-c", "envoy.yaml", "--disable-hot-restart", "--concurrency", "1", "-l", "warning"]


def main():
    shop = Server(("127.0.0.1", 0), Shop)
    threading.Thread(target=shop.serve_forever, daemon=True).start()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        configure(work, port, shop.server_port)
        for gateway, command in commands(work, port):
            process = None
            with open(work / f"{gateway}.log", "w+") as log:
                try:
                    process = start(command, work, port, log)
                    print(f"{gateway}: {check(port)} requests with headers or detours of the client, none reached the service")
                except AssertionError as error:
                    failed = 1
                    print(f"{gateway}: FAILED: {error}\n{(work / f'{gateway}.log').read_text()[-2000:]}")
                finally:
                    if process:
                        process.terminate()
                        process.wait()
    sys.exit(failed)


main()
