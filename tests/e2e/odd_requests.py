"""Gives schemathesis, whose hooks this is, a bearer that is somebody.

Its odd requests sign out, demote and delete whomever they find, the bearer too. So every second there is a new
administrator, or nearly all answers would be the same 401.
"""

import uuid

import requests
import schemathesis


@schemathesis.auth(refresh_interval=1)
class Administrator:
    def get(self, case, context):
        base = case.operation.base_url.rstrip("/")
        account = {"email": f"admin-{uuid.uuid4().hex}@example.com", "password": "Adm1n-pass"}
        requests.post(f"{base}/auth/register", json={**account, "role": "admin"}, timeout=20).raise_for_status()
        answer = requests.post(f"{base}/auth/login", json=account, timeout=20)
        answer.raise_for_status()
        return answer.json()["access_token"]

    def set(self, case, token, context):
        case.headers["Authorization"] = f"Bearer {token}"
