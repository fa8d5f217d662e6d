-- The schema, version 1. Written so that PostgreSQL takes it too, once BLOB is a domain over BYTEA and
-- INTEGER is read as BIGINT. Times are Unix seconds; 0 is never.

CREATE TABLE meta (
	name  TEXT NOT NULL PRIMARY KEY,
	value TEXT NOT NULL
);

-- One row for each change, numbered without gaps: taken in the transaction that makes the change.
CREATE TABLE change (
	seq    INTEGER PRIMARY KEY,
	kind   INTEGER NOT NULL, -- 1 entry, 2 node, 3 bundle, 4 join token, 5 federation relationship
	object TEXT NOT NULL,
	at     INTEGER NOT NULL
);

-- Registration entries. identity: the first 16 bytes of SHA-256 over SPIFFE ID, parent ID and sorted
-- selectors. data: spire.api.types.Entry without the fields that are columns.
CREATE TABLE entry (
	num        INTEGER PRIMARY KEY,
	id         TEXT NOT NULL UNIQUE,
	identity   BLOB NOT NULL UNIQUE,
	spiffe_id  TEXT NOT NULL,
	parent_id  TEXT NOT NULL,
	revision   INTEGER NOT NULL,
	created_at INTEGER NOT NULL,
	expires_at INTEGER NOT NULL,
	is_token_alias INTEGER NOT NULL, -- selects its own parent by spiffe_id: goes with the node
	data       BLOB NOT NULL
);
CREATE INDEX entry_expires ON entry (expires_at) WHERE expires_at <> 0;
CREATE INDEX entry_token_alias ON entry (parent_id) WHERE is_token_alias <> 0;

-- Which entries name a foreign trust domain.
CREATE TABLE federated (
	trust_domain TEXT NOT NULL,
	entry        INTEGER NOT NULL,
	PRIMARY KEY (trust_domain, entry)
);
CREATE INDEX federated_entry ON federated (entry);

-- Attested nodes. serial: decimal, empty when banned. selectors: as in entry.data.
CREATE TABLE node (
	spiffe_id        TEXT NOT NULL PRIMARY KEY,
	attestation_type TEXT NOT NULL,
	serial           TEXT NOT NULL,
	expires_at       INTEGER NOT NULL,
	new_serial       TEXT NOT NULL,
	new_expires_at   INTEGER NOT NULL,
	can_reattest     INTEGER NOT NULL,
	agent_version    TEXT NOT NULL,
	selectors        BLOB NOT NULL
);

CREATE TABLE join_token (
	token      TEXT NOT NULL PRIMARY KEY,
	expires_at INTEGER NOT NULL
);

-- Trust bundles, the own one among them. data: spire.api.types.Bundle.
CREATE TABLE bundle (
	num          INTEGER PRIMARY KEY, -- order of insertion
	trust_domain TEXT NOT NULL UNIQUE,
	sequence     INTEGER NOT NULL,
	data         BLOB NOT NULL
);

CREATE TABLE blob (
	name TEXT NOT NULL PRIMARY KEY,
	data BLOB NOT NULL
);
