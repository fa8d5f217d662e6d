/* `controller`: what the Kubernetes controller thinks. Not in SPIRE. */
#include <stdlib.h>
#include <string.h>

#include "assay/server/v1/controller.pb-c.h"
#include "server/cmd.h"
#include "server/cmd_util.h"

static void print(struct cli *c, const Assay__Server__V1__ExplainPodResponse *rs)
{
	for (size_t i = 0; i < rs->n_notes; i++)
		cli_printf(c, "Note          : %s\n", rs->notes[i]);
	if (!rs->known) {
		cli_printf(c, "No such pod is known.\n");
		return;
	}
	cli_printf(c, "UID           : %s\n", rs->uid);
	cli_printf(c, "Node          : %s\n", *rs->node ? rs->node : "(none yet)");
	cli_printf(c, "Parent ID     : %s\n", *rs->parent_id ? rs->parent_id : "(none)");
	if (!rs->n_objects)
		cli_printf(c, "There is no ClusterSPIFFEID.\n");
	for (size_t i = 0; i < rs->n_objects; i++) {
		const Assay__Server__V1__ExplainedObject *o = rs->objects[i];

		cli_printf(c, "%-14s: %s%s%s%s%s\n", o->name, o->state, *o->entry_id ? " " : "",
			o->entry_id, *o->reason ? ": " : "", o->reason);
	}
}

static int explain(struct cli *c)
{
	Assay__Server__V1__ExplainPodRequest rq = ASSAY__SERVER__V1__EXPLAIN_POD_REQUEST__INIT;
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	AUTO(free) char *pod = xstrdup(cli_str(c, "pod"));
	char none[] = "default", *slash = strchr(pod, '/');
	struct err e = ERR_INIT;

	if (!*pod) {
		(void)err_set(&e, ERR_INVALID, "a pod is required: -pod NAMESPACE/NAME");
		return cli_fail(c, &e);
	}
	rq.namespace_ = slash ? pod : none;
	rq.name = slash ? slash + 1 : pod;
	if (slash)
		*slash = 0;
	if (cli_call(c, "/assay.server.v1.Controller/ExplainPod", &rq.base,
		    &assay__server__v1__explain_pod_response__descriptor, &m, &e)) {
		err_wrap(&e, "could not explain the pod");
		return cli_fail(c, &e);
	}
	if (!cmd_printed_json(c, m))
		print(c, (const void *)m);
	return 0;
}

static const struct cli_flag explain_flags[] = {
	{ .name = "pod",
		.type = CLI_STRING,
		.help = "The pod, as NAMESPACE/NAME; without a slash in the namespace default" },
	CLI_END
};

const struct cli_command cmd_controller[] = {
	{ "controller explain", "Says why a pod has the entries that it has", explain_flags,
		CLI_WITH_SOCKET | CLI_WITH_OUTPUT, explain },
	{ .name = NULL },
};
