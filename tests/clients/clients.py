"""httpx without a lock: is it still signed in after many access tokens have expired? Arguments as for clients.mjs.

`together` four requests of one client fail and refresh at once; `apart` two workers have read the same stored token, and
the second one refreshes after the first one has its answer.
"""

import asyncio
import sys
import time

import httpx

base, mode, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
EXPIRY = 2.1


class RefreshingAuth(httpx.Auth):
    """As the documentation of httpx has it."""

    requires_response_body = True

    def __init__(self, tokens):
        self.tokens = tokens

    def auth_flow(self, request):
        request.headers["Authorization"] = f"Bearer {self.tokens['access_token']}"
        response = yield request
        if response.status_code == 401:
            body = {"refresh_token": self.tokens["refresh_token"]}
            refreshed = yield httpx.Request("POST", f"{base}/auth/refresh", json=body)
            if refreshed.status_code != 200:
                raise RuntimeError(f"refresh answered {refreshed.status_code}: {refreshed.text}")
            self.tokens.update(refreshed.json())
            request.headers["Authorization"] = f"Bearer {self.tokens['access_token']}"
            yield request


async def expire_and_ask(tokens):
    if mode == "together":
        async with httpx.AsyncClient(auth=RefreshingAuth(tokens)) as client:
            for answer in await asyncio.gather(*(client.get(f"{base}/users/me") for _ in range(4))):
                answer.raise_for_status()
        return tokens
    for copy in [dict(tokens), dict(tokens)]:
        async with httpx.AsyncClient(auth=RefreshingAuth(copy)) as client:
            (await client.get(f"{base}/users/me")).raise_for_status()
        await asyncio.sleep(0.3)
    return copy


async def live():
    account = {"email": f"httpx-{mode}-{time.time_ns()}@example.com", "password": "client-pass-1"}
    httpx.post(f"{base}/auth/register", json=account).raise_for_status()
    tokens = httpx.post(f"{base}/auth/login", json=account).raise_for_status().json()
    for number in range(1, rounds + 1):
        await asyncio.sleep(EXPIRY)
        try:
            tokens = await expire_and_ask(tokens)
        except (RuntimeError, httpx.HTTPError) as error:
            sys.exit(f"httpx, {mode}: signed out in round {number} of {rounds}: {error}")
    print(f"httpx, {mode}: signed in after {rounds} expiries")


asyncio.run(live())
