/*
 * The agent put together: starts and stops its parts in one visible order. agent_run() is declared
 * in agent/cmd.h.
 */
#ifndef ASSAY_AGENT_AGENT_H
#define ASSAY_AGENT_AGENT_H

#include "agent/api.h"
#include "agent/reload.h"
#include "lib/http.h"

struct agent {
	const struct agent_options *o;
	struct loop *loop;
	struct keymgr *keys;
	struct cache *cache;
	struct jwtcache *jwt;
	struct workload *workload;
	struct sync *sync;
	struct api api;
	struct reload *reload;
	struct rpc_server *public_rpc, *admin_rpc;
	struct door *public_door, *admin_door;
	struct broker *broker; /* NULL: off */
	struct http_server *health, *metrics;
	bool stopping;
	int exit_code;
	int closing; /* parts that have not said that they are closed */
};

#endif
