/* A container engine's answers (first byte even), and control groups' paths against an operator's
 * patterns (odd): whatever they are, each is understood or refused. */
#include <string.h>

#include "agent/docker.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void answers(struct bytes v)
{
	struct docker_facts f = { 0 };
	AUTO(free) char *id = NULL;
	AUTO(free) char *message = docker_message(v);
	struct err e;

	INVARIANT(strlen(message) <= 500);
	if (docker_facts_parse(v, &f, &e) == 0) {
		AUTO(free) char *path = docker_path("1.41", "images", f.image);

		INVARIANT(f.image && f.pid >= 0);
		INVARIANT(!strpbrk(path, " \r\n?#%") || strchr(path, '%'));
	} else {
		INVARIANT(!f.image && !f.selectors.n);
	}
	docker_facts_deinit(&f);
	INVARIANT(docker_image_parse(v, &id, &e) == 0 || !id);
}

static void groups(struct bytes v)
{
	static char *patterns[] = { (char *)(uintptr_t) "/docker/<id>",
		(char *)(uintptr_t) "/my.slice/*/<id>/*" };
	struct strings s = { .v = patterns, .n = 2 };
	enum docker_engine engine;
	uint32_t uid = 0;
	AUTO(free) char *id = NULL;
	AUTO(free) char *place = NULL;
	struct err e;

	INVARIANT(docker_matchers_check(&s, &e) == 0);
	if (docker_matchers_find(&s, v, &id, &e) == 0 && id) {
		place = docker_place_of(v, id);
		INVARIANT(*id && strlen(id) <= DOCKER_ID_MAX);
		INVARIANT(place && strlen(place) >= strlen(id));
	}
	if (docker_engine_of(v, &engine, &uid, &e) == 0)
		INVARIANT(engine == ENGINE_PODMAN_ROOTLESS || engine == ENGINE_PODMAN ||
			  engine == ENGINE_DOCKER);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	if (n)
		(data[0] % 2 ? groups : answers)(bytes_of(data + 1, n - 1));
	return 0;
}
