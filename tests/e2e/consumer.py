"""Verifies a token as the cart, catalog and order services do, on a host whose clock is behind.

    consumer.py SECRET SECONDS_BEHIND <token

Prints {"header", "claims"}, or {"refused"} with the name of PyJWT's exception. The word `control` in place of a token
stands for one that is issued now and says so in `iat`, by which a test sees that the clock is behind indeed.
"""

import datetime
import json
import sys

import jwt
import jwt.api_jwt

secret, behind = sys.argv[1], float(sys.argv[2])
token = sys.stdin.read().strip()

if token == "control":
    now = int(datetime.datetime.now(tz=datetime.timezone.utc).timestamp())
    token = jwt.encode({"sub": "control", "iat": now, "exp": now + 60}, secret, algorithm="HS256")


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) - datetime.timedelta(seconds=behind)


jwt.api_jwt.datetime = Clock  # the only clock PyJWT reads

try:
    claims = jwt.decode(token, secret, algorithms=["HS256"])
    print(json.dumps({"header": jwt.get_unverified_header(token), "claims": claims}))
except jwt.PyJWTError as error:
    print(json.dumps({"refused": type(error).__name__}))
