/*
 * The tables of the `files` command. Names, defaults and meanings are spiffe-helper's (0.11.0);
 * what is ours is said to be.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "agent/files_options_internal.h"

#define SET(member) .offset = offsetof(struct files_set_file, o.member)
#define SET_FILE(member) .offset = offsetof(struct files_set_file, member)
#define TOP(member) .offset = offsetof(struct files_file, o.member)
#define TOP_FILE(member) .offset = offsetof(struct files_file, member)
#define JWT(member) .offset = offsetof(struct files_jwt_file, member)
#define STRING .type = CONFIG_T_STRING, .flags = CONFIG_EMPTY_IS_UNSET

const struct config_option files_set_table[] = {
	{ .path = "add_intermediates_to_bundle",
		.type = CONFIG_T_BOOL,
		SET(add_intermediates),
		.value = "false",
		.doc = "Intermediate certificates go into the bundle file, not the certificate "
		       "file." },
	{ .path = "cert_dir",
		STRING,
		SET(cert_dir),
		.doc = "Folder of the files; made if it is not there. Not given: the working "
		       "folder." },
	{ .path = "cert_file_mode",
		.type = CONFIG_T_INT,
		SET(cert_mode),
		.value = "0644",
		.doc = "Mode of certificate and bundle files, in octal: write 0644." },
	{ .path = "cmd",
		STRING,
		SET(cmd),
		.doc = "Program that is started when the files are there, and again when they "
		       "have changed and it has ended meanwhile; while it runs it gets "
		       "renew_signal." },
	{ .path = "cmd_args",
		STRING,
		SET_FILE(cmd_args),
		.doc = "Its arguments, split at each blank; one with blanks stands in double "
		       "quotes, a double quote in it is doubled. No shell." },
	{ .path = "group",
		STRING,
		SET_FILE(group),
		.doc = "Group of the files, by name or number. Ours." },
	{ .path = "hint",
		STRING,
		SET(hint),
		.doc = "The identity whose entry has this hint. Not given: the first." },
	{ .path = "include_federated_domains",
		.type = CONFIG_T_BOOL,
		SET(include_federated),
		.value = "false",
		.doc = "The bundle file holds the roots of federated trust domains too. A program "
		       "that reads it takes any of them for any name: see docs/SECURITY." },
	{ .path = "jwt_bundle_file_mode",
		.type = CONFIG_T_INT,
		SET(jwt_bundle_mode),
		.value = "0600",
		.doc = "Mode of the JWT bundle file." },
	{ .path = "jwt_bundle_file_name",
		STRING,
		SET(jwt_bundle_file),
		.doc = "JWT keys of all trust domains: JSON, name of the domain to JWK Set in "
		       "base64." },
	{ .path = "jwt_renews",
		.type = CONFIG_T_BOOL,
		SET(jwt_renews),
		.value = "false",
		.doc = "New JWT files, too, send the signal and start the command. Ours." },
	{ .path = "jwt_svid_file_mode",
		.type = CONFIG_T_INT,
		SET(jwt_svid_mode),
		.value = "0600",
		.doc = "Mode of JWT-SVID files." },
	{ .path = "jwt_svids",
		.type = CONFIG_T_LIST,
		SET_FILE(jwts),
		.doc = "`[{ jwt_audience = \"…\" jwt_extra_audiences = [\"…\"] jwt_svid_file_name "
		       "= \"…\" }]`: JWT-SVIDs, each in its file, fetched anew at half their "
		       "life." },
	{ .path = "key_file_mode",
		.type = CONFIG_T_INT,
		SET(key_mode),
		.value = "0600",
		.doc = "Mode of the key file, and of svid_combined_file_name." },
	{ .path = "omit_expired",
		.type = CONFIG_T_BOOL,
		SET(omit_expired),
		.value = "false",
		.doc = "Expired certificates are left out." },
	{ .path = "owner",
		STRING,
		SET_FILE(owner),
		.doc = "Owner of the files, by name or number; to give files away needs root. "
		       "Ours." },
	{ .path = "pid_file_name",
		STRING,
		SET(pid_file),
		.doc = "File with the number of a process that gets renew_signal." },
	{ .path = "renew_signal",
		STRING,
		SET_FILE(renew_signal),
		.doc = "Signal that says that the files have changed: SIGHUP, SIGUSR1, …" },
	{ .path = "spiffe_id",
		STRING,
		SET(spiffe_id),
		.doc = "The identity of this name. Not given: the first. Ours." },
	{ .path = "svid_bundle_file_name",
		STRING,
		SET(bundle_file),
		.doc = "Roots of the trust domain, PEM." },
	{ .path = "svid_combined_file_name",
		STRING,
		SET(combined_file),
		.doc = "Certificate, its intermediates and the key in one PEM file, for programs "
		       "that want one. The three other names may then be left out. Ours." },
	{ .path = "svid_file_name", STRING, SET(svid_file), .doc = "Certificate, PEM." },
	{ .path = "svid_key_file_name", STRING, SET(key_file), .doc = "Key, PEM (PKCS#8)." },
	CONFIG_OPTIONS_END,
};

const struct config_option files_top_table[] = {
	{ .path = "agent_address",
		STRING,
		TOP(agent_path),
		.doc = "The agent's socket, a path or unix:///path. Not given: the environment's "
		       "SPIFFE_ENDPOINT_SOCKET, or " FILES_AGENT_DEFAULT "." },
	{ .path = "daemon_mode",
		.type = CONFIG_T_BOOL,
		TOP(daemon),
		.value = "true",
		.doc = "Go on and keep the files current. false: write them once and end. The "
		       "flag -daemon-mode goes before it." },
	{ .path = "identity",
		.type = CONFIG_T_BLOCKS,
		TOP_FILE(identities),
		.doc = "`identity \"name\" { … }`: a further set of files, with all the keys of a "
		       "set; cert_dir is the one above unless it is given. Ours." },
	{ .path = "log_format",
		.type = CONFIG_T_CHOICE_BOOL,
		TOP(log_json),
		.value = "text",
		.choices = "text|json",
		.doc = "Shape of log lines. Ours." },
	{ .path = "log_level",
		.type = CONFIG_T_LOG_LEVEL,
		TOP(log_level),
		.value = "INFO",
		.doc = "Least severe events to log: DEBUG, INFO, WARN, ERROR. Ours." },
	{ .path = "health_checks",
		.type = CONFIG_T_SECTION,
		.flags = CONFIG_LENIENT,
		.doc = "HTTP server for probes, while daemon_mode is on." },
	{ .path = "health_checks.bind_address",
		STRING,
		TOP(health_address),
		.doc = "Not given: all addresses. Ours." },
	{ .path = "health_checks.bind_port",
		.type = CONFIG_T_INT,
		TOP(health_port),
		.value = "8081",
		.doc = "Port." },
	{ .path = "health_checks.listener_enabled",
		.type = CONFIG_T_BOOL,
		TOP(health),
		.value = "false",
		.doc = "Serve at all." },
	{ .path = "health_checks.liveness_path",
		STRING,
		TOP(live_path),
		.value = "/live",
		.doc = "200 unless files could not be written the last time; else 503." },
	{ .path = "health_checks.readiness_path",
		STRING,
		TOP(ready_path),
		.value = "/ready",
		.doc = "200 when all files are written; else 503." },
	CONFIG_OPTIONS_END,
};

const struct config_option files_jwt_table[] = {
	{ .path = "jwt_audience", STRING, JWT(audience), .doc = "Who the token is for." },
	{ .path = "jwt_extra_audiences",
		.type = CONFIG_T_STRINGS,
		JWT(extra),
		.doc = "For whom else." },
	{ .path = "jwt_svid_file_name", STRING, JWT(file), .doc = "The token's file." },
	CONFIG_OPTIONS_END,
};

const struct config_option *files_whole_table(void)
{
	static struct config_option all[ARRAY_LEN(files_set_table) + ARRAY_LEN(files_top_table)];
	size_t n = ARRAY_LEN(files_set_table) - 1;

	if (!all[0].path) {
		for (size_t i = 1; i < n; i++)
			all[i] = files_set_table[i];
		for (size_t i = 0; i < ARRAY_LEN(files_top_table); i++)
			all[n + i] = files_top_table[i];
		all[0] = files_set_table[0];
	}
	return all;
}

/* ---- docs/CONFIG ---- */

static void put_rows(struct config_option *to, size_t *n, const char *section, const char *doc,
	const struct config_option *rows)
{
	to[(*n)++] = (struct config_option){
		.path = xstrdup(section), .type = CONFIG_T_SECTION, .doc = doc
	};
	for (; rows->path; rows++) {
		to[*n] = *rows;
		to[(*n)++].path = xasprintf("%s.%s", section, rows->path);
	}
}

void files_options_describe(struct buf *ret)
{
	struct config_option all[ARRAY_LEN(files_set_table) + ARRAY_LEN(files_top_table) +
				 ARRAY_LEN(files_jwt_table) + 4] = { { .path = NULL } };
	struct config_option top[ARRAY_LEN(files_top_table)] = { { .path = NULL } };
	size_t n = 0, n_top = 0;

	for (const struct config_option *o = files_top_table; o->path; o++)
		top[n_top++] = *o;
	put_rows(all, &n, "top level", "Keys of the whole file.", top);
	put_rows(all, &n, "top level, and identity",
		"Keys of a set of files: at the top level, or in a block `identity \"name\"`.",
		files_set_table);
	put_rows(all, &n, "jwt_svids", "Keys of one of its objects.", files_jwt_table);
	/* the section inside of the top level has a title of its own */
	for (size_t i = 0; i < n; i++)
		if (strncmp(all[i].path, "top level.health_checks", 23) == 0)
			memmove((char *)(uintptr_t)all[i].path, all[i].path + 10,
				strlen(all[i].path + 10) + 1);
	config_describe(all, ret);
	for (size_t i = 0; i < n; i++)
		free((char *)(uintptr_t)all[i].path);
}
