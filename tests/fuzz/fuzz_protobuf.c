/*
 * Every request type of every service that we serve, unpacked from arbitrary bytes: nothing
 * crashes, no string holds a NUL or bad UTF-8, and what was unpacked can be packed again. The first
 * byte chooses the type.
 */
#include <stdlib.h>

#include "lib/rpc_wire.h"

#include "assay/agent/v1/admin.pb-c.h"
#include "assay/agent/v1/sync.pb-c.h"
#include "envoy/service/secret/v3/sds.pb-c.h"
#include "google/rpc/status.pb-c.h"
#include "grpc/health/v1/health.pb-c.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "spiffe/workload/workload.pb-c.h"
#include "spire/api/agent/debug/v1/debug.pb-c.h"
#include "spire/api/agent/delegatedidentity/v1/delegatedidentity.pb-c.h"
#include "spire/api/agent/logger/v1/logger.pb-c.h"
#include "spire/api/server/agent/v1/agent.pb-c.h"
#include "spire/api/server/bundle/v1/bundle.pb-c.h"
#include "spire/api/server/debug/v1/debug.pb-c.h"
#include "spire/api/server/entry/v1/entry.pb-c.h"
#include "spire/api/server/localauthority/v1/localauthority.pb-c.h"
#include "spire/api/server/logger/v1/logger.pb-c.h"
#include "spire/api/server/svid/v1/svid.pb-c.h"
#include "spire/api/server/trustdomain/v1/trustdomain.pb-c.h"

enum { MESSAGE_MAX = 64 << 10 };

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static const ProtobufCServiceDescriptor *const services[] = {
	&spire__api__server__entry__v1__entry__descriptor,
	&spire__api__server__agent__v1__agent__descriptor,
	&spire__api__server__bundle__v1__bundle__descriptor,
	&spire__api__server__svid__v1__svid__descriptor,
	&spire__api__server__trustdomain__v1__trust_domain__descriptor,
	&spire__api__server__localauthority__v1__local_authority__descriptor,
	&spire__api__server__logger__v1__logger__descriptor,
	&spire__api__server__debug__v1__debug__descriptor,
	&spire__api__agent__logger__v1__logger__descriptor,
	&spire__agent__debug__v1__debug__descriptor,
	&spire__api__agent__delegatedidentity__v1__delegated_identity__descriptor,
	&spiffe_workload_api__descriptor,
	&assay__agent__v1__sync__descriptor,
	&assay__agent__v1__admin__descriptor,
	&grpc__health__v1__health__descriptor,
	&grpc__reflection__v1__server_reflection__descriptor,
	&envoy__service__secret__v3__secret_discovery_service__descriptor,
};

static const ProtobufCMessageDescriptor *choose(unsigned i)
{
	unsigned total = 0;

	for (size_t s = 0; s < ARRAY_LEN(services); s++)
		total += services[s]->n_methods;
	i %= total + 1;
	for (size_t s = 0; s < ARRAY_LEN(services); s++) {
		if (i < services[s]->n_methods)
			return services[s]->methods[i].input;
		i -= services[s]->n_methods;
	}
	return &google__rpc__status__descriptor; /* what a server may send us */
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	const ProtobufCMessageDescriptor *d;
	ProtobufCMessage *m = NULL;
	struct err e = ERR_INIT;
	uint8_t *packed;

	if (n < 1 || n > MESSAGE_MAX)
		return 0;
	d = choose(p[0]);
	if (rpc_unpack(d, bytes_of(p + 1, n - 1), MESSAGE_MAX, &m, &e) != 0) {
		INVARIANT(e.code != 0 && e.msg[0]);
		return 0;
	}
	packed = xmalloc(protobuf_c_message_get_packed_size(m) + 1);
	protobuf_c_message_pack(m, packed);
	free(packed);
	protobuf_c_message_free_unpacked(m, NULL);
	return 0;
}
