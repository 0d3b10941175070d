"""A mail server on loopback. Each mail it takes becomes a JSON file.

    mail_server.py PORT FOLDER [--login USER:PASSWORD] [--certificate FILE --key FILE [--implicit]] [--ascii] [--delay SECONDS]

The name of a recipient can ask for a fault: `fault+anything@example.com`, where the fault is
    rejected    RCPT is answered 550
    deferred    RCPT is answered 451, the first time
    unwanted    the mail itself is answered 554
    quoted      the same, with the longest word of the mail
    dropped     the mail is taken, and instead of an answer the connection is closed, the first time
    silent      RCPT is never answered; FOLDER/silent tells that it came
    last        the mail is taken, and the next one on the same connection is answered 421
"""

import argparse
import asyncio
import email
import email.policy
import itertools
import json
import os
import pathlib
import ssl

from aiosmtpd.smtp import SMTP, AuthResult


def text(mail, form):
    return mail.get_body([form]).get_content().replace("\r\n", "\n")


class Handler:
    def __init__(self, folder, delay):
        self.folder = folder
        self.delay = delay
        self.seen = set()
        self.connections = itertools.count()

    def first_time(self, address):
        known = address in self.seen
        self.seen.add(address)
        return not known

    async def handle_MAIL(self, server, session, envelope, address, options):
        if getattr(session, "last", False):
            server.transport.close()
            return "421 4.3.2 no more mails on this connection"
        if not hasattr(session, "number"):
            session.number = next(self.connections)
        envelope.mail_from = address
        return "250 2.1.0 OK"

    async def handle_RCPT(self, server, session, envelope, address, options):
        fault = address.split("@")[0].split("+")[0]
        if fault == "rejected":
            return f"550 5.1.1 <{address}>: there is no such mailbox"
        if fault == "deferred" and self.first_time(address):
            return "451 4.7.1 come back later"
        if fault == "silent":
            (self.folder / "silent").touch()
            await asyncio.sleep(600)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server, session, envelope):
        [address] = envelope.rcpt_tos
        fault = address.split("@")[0].split("+")[0]
        if fault == "unwanted":
            return "554 5.7.1 this mail is not wanted"
        if fault == "quoted":
            words = text(email.message_from_bytes(envelope.original_content, policy=email.policy.default), "plain").split()
            return f"554 5.7.1 blocked link: {max(words, key=len)}"
        self.keep(session, envelope, server.transport.get_extra_info("ssl_object") is not None)
        await asyncio.sleep(self.delay)
        if fault == "dropped" and self.first_time(address):
            server.transport.abort()
        session.last = fault == "last"
        return "250 2.0.0 OK"

    def keep(self, session, envelope, encrypted):
        mail = email.message_from_bytes(envelope.original_content, policy=email.policy.default)
        described = {
            "headers": {name.lower(): str(value) for name, value in mail.items()},
            "parts": [part.get_content_type() for part in mail.walk()],
            "text": text(mail, "plain"),
            "html": text(mail, "html"),
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos[0],
            "hello": session.host_name,
            "encrypted": encrypted,
            "authenticated": session.authenticated,
            "connection": session.number,
        }
        # Whole when it is seen.
        number = len(list(self.folder.glob("*.json")))
        written = self.folder / "mail.part"
        written.write_text(json.dumps(described))
        os.rename(written, self.folder / f"{number:06}.json")


async def serve(options):
    login = tuple(part.encode() for part in options.login.split(":", 1)) if options.login else None

    def authenticate(server, session, envelope, mechanism, data):
        return AuthResult(success=(data.login, data.password) == login, handled=False)

    tls = None
    if options.certificate:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(options.certificate, options.key)
    handler = Handler(options.folder, options.delay)

    def connection():
        return SMTP(
            handler,
            hostname="mail.example",
            enable_SMTPUTF8=not options.ascii,
            tls_context=None if options.implicit else tls,
            require_starttls=bool(tls) and not options.implicit,
            authenticator=authenticate if login else None,
            auth_required=bool(login),
            auth_require_tls=False,
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(connection, "127.0.0.1", options.port, ssl=tls if options.implicit else None)
    await server.serve_forever()


parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--login")
parser.add_argument("--certificate")
parser.add_argument("--key")
parser.add_argument("--implicit", action="store_true")
parser.add_argument("--ascii", action="store_true")
parser.add_argument("--delay", type=float, default=0)
asyncio.run(serve(parser.parse_args()))
