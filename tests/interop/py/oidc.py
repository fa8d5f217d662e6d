"""PyJWT against OIDC discovery: oidc.py ISSUER ROOTS AUDIENCE SUBJECT, the token on the standard input. ROOTS: the web certificate."""
import json
import ssl
import sys
import urllib.request

import jwt


def main() -> None:
    issuer, roots, audience, subject = sys.argv[1:5]
    token = sys.stdin.read().strip()
    context = ssl.create_default_context(cafile=roots)
    with urllib.request.urlopen(issuer + "/.well-known/openid-configuration", context=context) as answer:
        document = json.load(answer)
    assert document["issuer"] == issuer, document
    client = jwt.PyJWKClient(document["jwks_uri"], ssl_context=context)
    key = client.get_signing_key_from_jwt(token)
    claims = jwt.decode(token, key.key, algorithms=document["id_token_signing_alg_values_supported"], audience=audience, issuer=issuer)
    assert claims["sub"] == subject, claims
    try:
        jwt.decode(token, key.key, algorithms=["RS256", "ES256", "ES384"], audience="another")
    except jwt.InvalidAudienceError:
        print("validated:", claims["sub"])
        return
    raise SystemExit("any audience is taken")


main()
