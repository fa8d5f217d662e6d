#!/usr/bin/env python3
"""as-spire.py DIR TO: writes what a SPIRE server would have left in TO (datastore.sqlite3, keys.json) if it, and not the
stopped assay-server whose data folder is DIR, had served the trust domain."""
import base64, json, os, shutil, sqlite3, sys, time

SCHEMA = """
CREATE TABLE migrations (id integer primary key, version integer, code_version text);
CREATE TABLE bundles (id integer primary key, trust_domain text, data blob);
CREATE TABLE attested_node_entries (id integer primary key, spiffe_id text, data_type text, serial_number text,
 expires_at datetime, new_serial_number text, new_expires_at datetime, can_reattest bool, agent_version text);
CREATE TABLE node_resolver_map_entries (id integer primary key, spiffe_id text, type text, value text);
CREATE TABLE registered_entries (id integer primary key, created_at datetime, entry_id text, spiffe_id text,
 parent_id text, ttl integer, admin bool, downstream bool, expiry bigint, revision_number bigint, store_svid bool,
 hint text, jwt_svid_ttl integer, additional_attributes blob);
CREATE TABLE selectors (id integer primary key, registered_entry_id integer, type text, value text);
CREATE TABLE dns_names (id integer primary key, registered_entry_id integer, value text);
CREATE TABLE federated_registration_entries (bundle_id integer, registered_entry_id integer);
CREATE TABLE join_tokens (id integer primary key, token text, expiry bigint);
CREATE TABLE federated_trust_domains (id integer primary key, trust_domain text, bundle_endpoint_url text,
 bundle_endpoint_profile text, endpoint_spiffe_id text);
CREATE TABLE ca_journals (id integer primary key, data blob, active_x509_authority_id text);
INSERT INTO migrations VALUES (1, 25, '1.15.3');
"""


def varint(v):
    out = b""
    while v >= 0x80:
        out += bytes([v & 0x7F | 0x80])
        v >>= 7
    return out + bytes([v])


def field(n, v):
    if isinstance(v, int):
        return varint(n << 3) + varint(v)
    if isinstance(v, str):
        v = v.encode()
    return varint(n << 3 | 2) + varint(len(v)) + v


def fields(b):
    at = 0

    def number():
        nonlocal at
        v = shift = 0
        while True:
            c = b[at]
            at += 1
            v |= (c & 0x7F) << shift
            shift += 7
            if c < 0x80:
                return v

    while at < len(b):
        tag = number()
        v = number()
        if tag & 7 == 2:
            v, at = b[at:at + v], at + v
        yield tag >> 3, v


def when(t):
    return time.strftime("%Y-%m-%d %H:%M:%S.123456789+00:00", time.gmtime(t)) if t else None


def selectors(data):
    for n, v in fields(data):
        if n == 4:
            s = dict(fields(v))
            yield s.get(1, b"").decode(), s.get(2, b"").decode()


def journal(doc):
    status = {"prepared": 2, "active": 3, "old": 4}
    out = b""
    for a in doc["authorities"]:
        m = field(1, a["slot"]) + field(2, a["issued_at"])
        if a["kind"] == "x509":
            m += field(3, base64.b64decode(a["certificate"])) + field(5, status[a["status"]]) + field(6, a["id"])
            out += field(1, m + field(7, a["not_after"]))
        else:
            m += field(3, a["not_after"]) + field(4, a["id"]) + field(5, base64.b64decode(a["public_key"]))
            out += field(2, m + field(6, status[a["status"]]))
    return out


def main(src, to):
    os.makedirs(to)
    shutil.copy(src + "/keys.json", to)
    a = sqlite3.connect(src + "/datastore.sqlite3")
    s = sqlite3.connect(to + "/datastore.sqlite3")
    s.executescript(SCHEMA)
    bundles = {}
    for td, data in a.execute("SELECT trust_domain, data FROM bundle ORDER BY num"):
        # the same message, but for the name
        data = field(1, "spiffe://" + td) + b"".join(field(n, v) for n, v in fields(data) if n != 1)
        bundles[td] = s.execute("INSERT INTO bundles (trust_domain, data) VALUES (?, ?)", ("spiffe://" + td, data)).lastrowid
    for num, id_, sid, pid, rev, made, exp, data in a.execute(
            "SELECT num, id, spiffe_id, parent_id, revision, created_at, expires_at, data FROM entry ORDER BY num"):
        one = {n: v for n, v in fields(data)}
        s.execute("INSERT INTO registered_entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                  (num, when(made), id_, sid, pid, one.get(5, 0), one.get(7, 0), one.get(8, 0), exp, rev, one.get(12, 0),
                   one.get(14, b"").decode(), one.get(13, 0), one.get(16)))
        for t, v in selectors(data):
            s.execute("INSERT INTO selectors (registered_entry_id, type, value) VALUES (?, ?, ?)", (num, t, v))
        for n, v in fields(data):
            if n == 10:
                s.execute("INSERT INTO dns_names (registered_entry_id, value) VALUES (?, ?)", (num, v.decode()))
            if n == 6:
                s.execute("INSERT INTO federated_registration_entries VALUES (?, ?)", (bundles[v.decode()], num))
    for sid, kind, serial, exp, new, new_exp, again, version, data in a.execute(
            "SELECT spiffe_id, attestation_type, serial, expires_at, new_serial, new_expires_at, can_reattest, agent_version, "
            "selectors FROM node"):
        s.execute("INSERT INTO attested_node_entries (spiffe_id, data_type, serial_number, expires_at, new_serial_number, "
                  "new_expires_at, can_reattest, agent_version) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                  (sid, kind, serial, when(exp), new, when(new_exp), again, version))
        for t, v in selectors(data):
            s.execute("INSERT INTO node_resolver_map_entries (spiffe_id, type, value) VALUES (?, ?, ?)", (sid, t, v))
    s.executemany("INSERT INTO join_tokens (token, expiry) VALUES (?, ?)", a.execute("SELECT token, expires_at FROM join_token"))
    s.executemany("INSERT INTO federated_trust_domains (trust_domain, bundle_endpoint_url, bundle_endpoint_profile, "
                  "endpoint_spiffe_id) VALUES (?, ?, ?, ?)",
                  [(td, url, "https_spiffe" if sid else "https_web", sid)
                   for td, url, sid in a.execute("SELECT trust_domain, url, endpoint_id FROM relationship ORDER BY num")])
    doc = json.loads(a.execute("SELECT data FROM blob WHERE name = 'ca_journal'").fetchone()[0])
    active = [x["id"] for x in doc["authorities"] if x["kind"] == "x509" and x["status"] == "active"]
    s.execute("INSERT INTO ca_journals (data, active_x509_authority_id) VALUES (?, ?)", (journal(doc), active[0]))
    s.commit()


main(*sys.argv[1:])
