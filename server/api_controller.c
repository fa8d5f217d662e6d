/* Service assay.server.v1.Controller: what the Kubernetes controller thinks of a pod. */
#include <stdlib.h>

#include "assay/server/v1/controller.pb-c.h"
#include "server/api.h"
#include "server/controller.h"
#include "server/reconcile.h"

#define ASSAY(name) Assay__Server__V1__##name

static void explain_pod(struct rpc_call *c, const ProtobufCMessage *req)
{
	const ASSAY(ExplainPodRequest) *rq = (const void *)req;
	const struct api *a = rpc_call_data(c);
	struct reconcile_explanation x;
	ASSAY(ExplainPodResponse) * rs;

	if (!a->controller) {
		rpc_fail(c, ERR_PRECONDITION,
			"this server has no controller: its configuration has no block "
			"\"controller\"");
		return;
	}
	controller_explain(a->controller, rq->namespace_, rq->name, &x);
	rs = pb_new(&assay__server__v1__explain_pod_response__descriptor);
	for (size_t i = 0; i < x.notes.n; i++)
		pb_append(&rs->notes, &rs->n_notes, pb_str(x.notes.v[i]));
	rs->known = x.known;
	rs->uid = pb_str(x.uid);
	rs->node = pb_str(x.node);
	rs->parent_id = pb_str(x.parent_id);
	for (size_t i = 0; i < x.n_lines; i++) {
		ASSAY(ExplainedObject) *m =
			pb_new(&assay__server__v1__explained_object__descriptor);

		m->name = pb_str(x.lines[i].object);
		m->state = pb_str(x.lines[i].state);
		m->reason = pb_str(x.lines[i].reason);
		m->entry_id = pb_str(x.lines[i].entry_id);
		pb_append(&rs->objects, &rs->n_objects, m);
	}
	reconcile_explanation_deinit(&x);
	api_reply(c, rs);
}

static const struct rpc_method methods[] = {
	{ "ExplainPod", RPC_UNARY, explain_pod },
};

struct rpc_service api_controller_service(struct api *a)
{
	return (struct rpc_service){ .desc = &assay__server__v1__controller__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a };
}
