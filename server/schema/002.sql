-- Version 2: where the bundles of other trust domains are fetched from. num: order of creation.
-- endpoint_id: SPIFFE ID of an https_spiffe endpoint, empty for https_web.
CREATE TABLE relationship (
	num          INTEGER PRIMARY KEY,
	trust_domain TEXT NOT NULL UNIQUE,
	url          TEXT NOT NULL,
	endpoint_id  TEXT NOT NULL
);
