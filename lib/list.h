/* Intrusive doubly linked list. A head is a node that links to itself when empty. */
#ifndef ASSAY_LIB_LIST_H
#define ASSAY_LIB_LIST_H

#include <stdbool.h>
#include <stddef.h>

#include "lib/mem.h"

struct list {
	struct list *next;
	struct list *prev;
};

static inline void list_init(struct list *l)
{
	l->next = l->prev = l;
}

static inline bool list_empty(const struct list *l)
{
	return l->next == l;
}

/* Puts n at the end of the list whose head is l. */
static inline void list_append(struct list *l, struct list *n)
{
	n->prev = l->prev;
	n->next = l;
	l->prev->next = n;
	l->prev = n;
}

/* Takes n out of the list it is in; harmless on a node that is in none but was initialised. */
static inline void list_remove(struct list *n)
{
	n->prev->next = n->next;
	n->next->prev = n->prev;
	n->next = n->prev = n;
}

/* The body may remove the current node. */
#define list_each(pos, head, type, member)                                                         \
	for (type *pos = container_of((head)->next, type, member),                                 \
		  *pos##_next = container_of(pos->member.next, type, member);                      \
		&pos->member != (head);                                                            \
		pos = pos##_next, pos##_next = container_of(pos->member.next, type, member))

#endif
