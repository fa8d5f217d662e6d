/* The FileDescriptorSet of all our .proto files and their imports, for server reflection. */
#ifndef ASSAY_LIB_DESCRIPTORS_H
#define ASSAY_LIB_DESCRIPTORS_H

extern const char descriptors[];     /* rpc_server_options.reflection_descriptors */
extern const char descriptors_end[]; /* one past its last byte */

#endif
