/* `explain`: why a process has the identities that it has, or has none. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "agent/cmd.h"
#include "assay/agent/v1/admin.pb-c.h"
#include "lib/clock.h"

static const struct cli_flag explain_flags[] = {
	{ .name = "pid", .type = CLI_INT, .help = "The process, as the agent's host numbers it" },
	CLI_END,
};

typedef Assay__Agent__V1__ExplainResponse Response;

static void print_caller(struct cli *c, const Assay__Agent__V1__Caller *p)
{
	cli_printf(c, "Process %d", (int)p->pid);
	if (*p->executable)
		cli_printf(c, " (%s)", p->executable);
	cli_printf(c, ", uid %u, gid %u", p->uid, p->gid);
	for (size_t i = 0; i < p->n_supplementary_gids; i++)
		cli_printf(c, "%s %u", i ? "," : ", groups", p->supplementary_gids[i]);
	cli_printf(c, "\n");
}

static void print_attestor(struct cli *c, const Assay__Agent__V1__Attestor *a)
{
	AUTO(free) char *took = duration_format(a->micros * 1000);

	if (*a->error)
		cli_printf(c, "\nAttestor %s failed after %s: %s\n", a->name, took, a->error);
	else
		cli_printf(c, "\nAttestor %s found in %s:\n", a->name, took);
	if (*a->waited_for)
		cli_printf(c, "    (waited for %s)\n", a->waited_for);
	for (size_t i = 0; i < a->n_selectors; i++)
		cli_printf(c, "    %s:%s\n", a->selectors[i]->type, a->selectors[i]->value);
	if (!*a->error && !a->n_selectors)
		cli_printf(c, "    nothing\n");
}

static void print_entry(struct cli *c, const Spire__Api__Types__Entry *en)
{
	AUTO(free) char *id = cli_id_text(en->spiffe_id);

	cli_printf(c, "    %s (entry %s)\n", id, en->id);
}

static void print_matches(struct cli *c, const Response *r)
{
	if (!r->n_matches)
		return;
	cli_printf(c, "\nEntries that match:\n");
	for (size_t i = 0; i < r->n_matches; i++) {
		const Assay__Agent__V1__Match *m = r->matches[i];

		if (m->entry)
			print_entry(c, m->entry);
		if (*m->svid_serial) {
			AUTO(free) char *until = cli_time_rfc3339(m->expires_at);

			cli_printf(c, "        X509-SVID %s until %s\n", m->svid_serial, until);
		} else {
			cli_printf(c, "        no X509-SVID held yet\n");
		}
	}
}

static void print_nearest(struct cli *c, const Response *r)
{
	if (!r->n_nearest)
		return;
	cli_printf(c, "\nEntries that come closest, and what the process lacks:\n");
	for (size_t i = 0; i < r->n_nearest; i++) {
		const Assay__Agent__V1__NearMiss *m = r->nearest[i];

		if (m->entry)
			print_entry(c, m->entry);
		for (size_t k = 0; k < m->n_missing; k++)
			cli_printf(c, "        lacks %s:%s\n", m->missing[k]->type,
				m->missing[k]->value);
	}
}

static void print_sync(struct cli *c, const Assay__Agent__V1__SyncState *s)
{
	static const char *const modes[] = { "stored on this host; the server was not reached yet",
		"pushed by the server", "polled from the server", "fetched whole from the server" };
	AUTO(free) char *when = cli_time_rfc3339(s->last_success);

	cli_printf(c, "\n%u %s known, %s", s->entries, text_plural(s->entries, "entry", "entries"),
		(size_t)s->mode < ARRAY_LEN(modes) ? modes[s->mode] : "in a way unknown here");
	if (*s->server_address)
		cli_printf(c, " (%s)", s->server_address);
	if (s->last_success)
		cli_printf(c, "; up to date at %s", when);
	cli_printf(c, "\n");
	if (*s->error)
		cli_printf(c, "Not up to date now: %s\n", s->error);
}

static void print_answer(struct cli *c, const Response *r)
{
	if (r->caller)
		print_caller(c, r->caller);
	for (size_t i = 0; i < r->n_attestors; i++)
		print_attestor(c, r->attestors[i]);
	print_matches(c, r);
	print_nearest(c, r);
	if (r->sync)
		print_sync(c, r->sync);
	if (*r->verdict)
		cli_printf(c, "\n%s\n", r->verdict);
}

static int explain(struct cli *c)
{
	Assay__Agent__V1__ExplainRequest rq = ASSAY__AGENT__V1__EXPLAIN_REQUEST__INIT;
	int64_t pid = cli_int(c, "pid");
	ProtobufCMessage *m = NULL;
	struct err e;
	int r;

	if (pid <= 0 || pid > INT32_MAX)
		r = err_set(&e, ERR_INVALID, "a process must be named: -pid N");
	else {
		rq.pid = (int32_t)pid;
		r = cli_call(c, "/assay.agent.v1.Admin/Explain", &rq.base,
			&assay__agent__v1__explain_response__descriptor, &m, &e);
	}
	if (r)
		return cli_fail(c, &e);
	if (cli_json(c)) {
		const ProtobufCMessage *one = m;

		cli_print_json(c, &one, 1);
	} else {
		print_answer(c, (const Response *)m);
	}
	protobuf_c_message_free_unpacked(m, NULL);
	return 0;
}

const struct cli_command cmd_explain[] = {
	{ "explain", "Says which identities a process gets, and why", explain_flags,
		CLI_WITH_ADMIN | CLI_WITH_OUTPUT, explain },
	{ .name = NULL },
};
