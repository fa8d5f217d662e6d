#include "agent/sync_internal.h"

/* rebootstrap_mode: what is done about a server that the bundle does not vouch for. Somebody in the
 * middle looks the same, so the only trust that replaces the bundle is what the operator's source
 * of the first bundle says now. */

void rebootstrap_stranger(struct sync *s)
{
	const struct agent_options *o = s->o.options;
	bool will = o->rebootstrap_mode != REBOOTSTRAP_NEVER && !s->no_rebootstrap;

	if (s->strange_since || s->stopped)
		return;
	s->strange_since = clock_wall().sec;
	log_event(LOG_WARN, "agent",
		will ? "The trust bundle does not vouch for the server: unknown authority; "
		       "bootstrapping anew if that lasts"
		     : "The trust bundle does not vouch for the server: unknown authority; going "
		       "on with what is known",
		"server", o->server_address, "delay",
		will ? log_fmt("%.0fs", (double)o->rebootstrap_delay_ns / 1e9) : NULL, NULL);
	if (will)
		loop_timer_set(s->rebootstrap_timer, o->rebootstrap_delay_ns);
}

void rebootstrap_agreed(struct sync *s)
{
	if (!s->strange_since)
		return;
	log_event(LOG_INFO, "agent", "The trust bundle vouches for the server again", NULL);
	s->strange_since = 0;
	s->rebootstrap = false;
	s->rebootstrap_tries = 0;
	loop_timer_stop(s->rebootstrap_timer);
	/* An attempt that is under way ends by itself, see attest_again(). */
	if (s->for_rebootstrap && !s->attesting && s->key) {
		s->for_rebootstrap = false;
		loop_timer_stop(s->attest_timer);
		identity_arm_renewal(s);
	}
}

void rebootstrap_due(void *arg)
{
	struct sync *s = arg;

	if (!s->strange_since || s->stopped)
		return;
	log_event(LOG_WARN, "agent",
		"The trust bundle and the server do not agree: bootstrapping anew", NULL);
	s->rebootstrap = true;
	s->for_rebootstrap = s->key != NULL;
	sync_begin_attest(s);
}

bool rebootstrap_possible(struct sync *s)
{
	const char *msg = "rebootstrap_mode is set, but the server or the NodeAttestor plugin lets "
			  "this agent attest only once";

	if (s->o.options->rebootstrap_mode == REBOOTSTRAP_NEVER || !s->data.svid.n ||
		s->data.reattestable)
		return true;
	if (s->o.options->rebootstrap_mode == REBOOTSTRAP_ALWAYS) {
		s->o.fatal(s->o.arg, msg);
		return false;
	}
	if (!s->no_rebootstrap)
		log_event(LOG_WARN, "agent", msg, "rebootstrap_mode", "never, from now on", NULL);
	s->no_rebootstrap = true;
	return true;
}
