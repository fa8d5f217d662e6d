/* Configuration files: parser, environment, option table. */
#include <stddef.h>
#include <string.h>

#include "lib/config.h"
#include "lib/crypto.h"
#include "lib/log.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct opts {
	char *name, *td;
	int port;
	int64_t ttl;
	bool on;
	struct strings ids;
	enum key_type key;
	enum log_level level;
};
#define AT(m) .offset = offsetof(struct opts, m)

static const struct config_option table[] = {
	{ .path = "server", .type = CONFIG_T_SECTION, .flags = CONFIG_LENIENT },
	{ .path = "server.data_dir", .type = CONFIG_T_STRING, AT(name) },
	{ .path = "server.trust_domain",
		.type = CONFIG_T_STRING,
		.flags = CONFIG_TRUST_DOMAIN,
		AT(td) },
	{ .path = "server.bind_port", .type = CONFIG_T_INT, AT(port), .min = 1, .max = 65535 },
	{ .path = "server.ca_ttl", .type = CONFIG_T_DURATION, AT(ttl) },
	{ .path = "server.on", .type = CONFIG_T_BOOL, AT(on) },
	{ .path = "server.admin_ids", .type = CONFIG_T_STRINGS, AT(ids) },
	{ .path = "server.ca_key_type",
		.type = CONFIG_T_KEY_TYPE,
		AT(key),
		.choices = "ec-p256|rsa-2048" },
	{ .path = "server.log_level", .type = CONFIG_T_LOG_LEVEL, AT(level) },
	{ .path = "plugins", .type = CONFIG_T_SECTION },
	{ .path = "plugins.KeyManager", .type = CONFIG_T_SECTION },
	{ .path = "plugins.KeyManager.memory", .type = CONFIG_T_SECTION, .flags = CONFIG_PLUGIN },
	{ .path = "plugins.KeyManager.disk", .type = CONFIG_T_REFUSED, .note = "no" },
	{ .path = NULL },
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	AUTO_BUF struct buf text = BUF_INIT, out = BUF_INIT;
	struct opts o = { 0 };
	struct config c;

	if (memmem(data, size, "plugin_data_file", 16))
		return 0; /* would read what the input names */
	config_expand_env(bytes_of(data, size), &text, NULL);
	config_init(&c, table, &o);
	config_load_text(&c, "fuzz", bytes_of(data, size));
	config_load_text(&c, "expanded", buf_view(&text));
	config_check_required(&c);
	config_deinit(&c);
	config_print(table, &o, &out);
	config_free_values(table, &o);
	return 0;
}
