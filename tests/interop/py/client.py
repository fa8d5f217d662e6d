"""py-spiffe against the agent's socket: client.py SOCKET ID ROTATIONS AUDIENCE"""
import sys
import time

from spiffe import JwtSource, JwtSvid, SpiffeId, TrustDomain, WorkloadApiClient, X509Source


def main() -> None:
    socket, want, rotations, audience = f"unix:{sys.argv[1]}", SpiffeId(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    td = TrustDomain(want.trust_domain.name)
    with X509Source(socket_path=socket, timeout_in_seconds=20) as source:
        seen: set[int] = set()
        end = time.time() + 240
        while len(seen) <= rotations:
            svid = source.svid
            assert svid.spiffe_id == want, f"identity is {svid.spiffe_id}"
            roots = source.get_bundle_for_trust_domain(td).x509_authorities
            key_ids = {r.subject.rfc4514_string() for r in roots}
            assert svid.leaf.issuer.rfc4514_string() in key_ids, "an SVID whose issuer is not in the bundle"
            now = time.time()
            assert svid.leaf.not_valid_before_utc.timestamp() <= now < svid.leaf.not_valid_after_utc.timestamp(), "an SVID that is not valid now"
            seen.add(svid.leaf.serial_number)
            assert time.time() < end, f"only {len(seen)} serials in time"
            time.sleep(0.05)
        print(f"{len(seen) - 1} rotations seen by X509Source")
    with JwtSource(socket_path=socket, timeout_in_seconds=20) as jwts:
        token = jwts.fetch_svid({audience}, want)
        JwtSvid.parse_and_validate(token.token, jwts.get_bundle_for_trust_domain(td), {audience})
        print("token validated by JwtSource")
    client = WorkloadApiClient(socket_path=socket)
    back = client.validate_jwt_svid(token.token, audience)
    assert back.spiffe_id == want
    client.close()
    print("token validated by the agent")


main()
