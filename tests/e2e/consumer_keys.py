"""Verifies tokens with deploy/verify_access_token.py, one a line, for as long as lines come.

    consumer_keys.py LIFESPAN <tokens

Prints {"claims"} or {"refused"} for each, and how often the keys were fetched so far. A line `keys URL` names another place
to fetch them from next time, as a gateway does that sends to another replica.
"""

import json
import pathlib
import sys

import jwt

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "deploy"))
import verify_access_token as consumer  # noqa: E402

consumer.KEYS = jwt.PyJWKClient(consumer.KEYS.uri, lifespan=float(sys.argv[1]))
fetch, fetched = consumer.KEYS.fetch_data, 0


def counted():
    global fetched
    fetched += 1
    return fetch()


consumer.KEYS.fetch_data = counted

for line in sys.stdin:
    if line.startswith("keys "):
        consumer.KEYS.uri = line.split()[1]
        continue
    try:
        answer = {"claims": consumer.verify(line.strip())}
    except jwt.PyJWTError as error:
        answer = {"refused": type(error).__name__}
    print(json.dumps({**answer, "fetched": fetched}), flush=True)
