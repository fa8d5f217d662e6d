#!/usr/bin/env python3
"""csi.py DESCRIPTORS SOCKET METHOD [JSON]: one call by a gRPC library that nobody here wrote; the answer as JSON, or
"CODE: message" and status 1."""
import json
import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

descriptors, sock, method = sys.argv[1:4]
request = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
files = descriptor_pb2.FileDescriptorSet()
with open(descriptors, "rb") as f:
    files.ParseFromString(f.read())
pool = descriptor_pool.DescriptorPool()
for one in files.file:
    pool.Add(one)
service, name = method.rsplit("/", 1)
m = pool.FindServiceByName(service).FindMethodByName(name)


def message(d):
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(d)
    return message_factory.MessageFactory(pool).GetPrototype(d)


ask, answer = message(m.input_type), message(m.output_type)
channel = grpc.insecure_channel("unix:" + sock)
call = channel.unary_unary("/" + method, ask.SerializeToString, answer.FromString)
try:
    out = call(json_format.ParseDict(request, ask()), timeout=10)
except grpc.RpcError as e:
    print(f"{e.code().name}: {e.details()}")
    sys.exit(1)
print(json.dumps(json_format.MessageToDict(out, preserving_proto_field_name=True), sort_keys=True))
