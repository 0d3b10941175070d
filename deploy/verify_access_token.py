"""Verifies access tokens by the public keys of the sign-in service, or by the secret while that is still set.

Needs PyJWT[crypto] 2.13 or later, AUTH_JWKS_URL (http://auth:8000/auth/.well-known/jwks.json), and for the move JWT_SECRET.
"""
import os

import jwt

KEYS = jwt.PyJWKClient(os.environ["AUTH_JWKS_URL"], lifespan=300)  # one for the process: it keeps the keys
SECRET = os.environ.get("JWT_SECRET")


def verify(token: str) -> dict:
    algorithm = jwt.get_unverified_header(token).get("alg")
    if algorithm in ("EdDSA", "ES256"):
        key = KEYS.get_signing_key_from_jwt(token)
        claims = jwt.decode(token, key, algorithms=[key.algorithm_name], options={"require": ["exp", "sub"]})
    elif algorithm == "HS256" and SECRET:
        claims = jwt.decode(token, SECRET, algorithms=["HS256"], options={"require": ["exp", "sub"]})
    else:
        raise jwt.InvalidAlgorithmError("The token names an algorithm that is not used")
    if claims.get("type") != "access":
        raise jwt.InvalidTokenError("Not an access token")
    return claims
