/*
 * A set of files that change together. The folder holds
 *
 *   svid.pem -> ..data/svid.pem          one link for each file, which stays
 *   ..data -> ..data.3f2a90c41be07d15    which set is the present one
 *   ..data.3f2a90c41be07d15/svid.pem …   the set, written once and never changed
 *
 * so a new set takes the place of the old one by one rename. A set that could not be written whole
 * never becomes the present one; what a killed process left is removed when the folder is opened
 * again. The sets before the present one stay for a while, for readers that have looked up where
 * "..data" leads and open one file after the other.
 *
 * Everything here blocks: it is for a worker thread, one at a time for each folder.
 */
#ifndef ASSAY_AGENT_FILES_DISK_H
#define ASSAY_AGENT_FILES_DISK_H

#include <stdbool.h>
#include <sys/types.h>

#include "lib/buf.h"

enum {
	FILES_DISK_MAX = 4 << 20, /* bytes of one file */
	FILES_DISK_KEPT = 16,     /* sets beside the present one */
};

struct files_item {
	const char *name; /* below the folder; "a/b" if a is there */
	unsigned mode;
	struct bytes data;
};

struct files_disk;

/* tag: "" or the name of the set, so that several can share a folder. The folder is made if it is
 * not there. One process at a time: ERR_PRECONDITION when another has it. */
int files_disk_open(
	const char *dir, const char *tag, struct files_disk **ret, struct err *e) MUST_USE;
void files_disk_close(struct files_disk *d); /* what is there stays */

/* The file as it is now, if it is there with this mode and owner and needs no writing: true. The
 * content comes in either case, if there is any. */
bool files_disk_read(struct files_disk *d, const char *name, unsigned mode, uid_t uid, gid_t gid,
	struct buf *ret);

/* The items, and no others, become the present set. uid and gid: -1 leaves them as they come.
 * Files of those names that are there already, as other programs write them, become links.
 * ERR_EXHAUSTED: the disk is full. On every failure the old set stands as it was. */
int files_disk_write(struct files_disk *d, const struct files_item *v, size_t n, uid_t uid,
	gid_t gid, struct err *e) MUST_USE;
/* Removes the sets that have not been the present one for so long. True: others are left. */
bool files_disk_sweep(struct files_disk *d, int64_t older_ns);

#endif
