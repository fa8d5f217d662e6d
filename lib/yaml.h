/*
 * One YAML document, bounded, as the JSON value that it stands for: for Kubernetes' configuration
 * files. Anchors and aliases are known (an alias counts as what it stands for), merge keys, tags of
 * one's own and further documents are not.
 */
#ifndef ASSAY_LIB_YAML_H
#define ASSAY_LIB_YAML_H

#include <jansson.h>

#include "lib/buf.h"

enum {
	YAML_TEXT_MAX = 1 << 20,
	YAML_DEPTH_MAX = 32,
	YAML_NODES_MAX = 50000,
	YAML_ANCHORS_MAX = 100,
};

enum yaml_scalars {
	YAML_TYPED,   /* 1, true, null: by YAML 1.2's core schema (10.3) */
	YAML_STRINGS, /* all of them are strings, but for those that say !!null */
};
/* ERR_INVALID: with the line. An empty document is null. */
int yaml_parse(struct bytes text, enum yaml_scalars scalars, json_t **ret, struct err *e) MUST_USE;

#endif
