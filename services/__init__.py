"""The services of Muster, each a process of its own; none imports another."""

import os

# gRPC reads these once, when it is first imported, so they are set before any module below can import it.
# Python's gRPC has no switch for the lowest TLS version. These are the only suites that it may offer in
# TLS 1.2, and they need a server certificate with an RSA key: services' certificates have ECDSA keys, so that
# between services TLS 1.3, whose suites are not configurable, is all that remains. The one server that may
# have an RSA key is etcd: before 3.5.9 it speaks nothing newer than TLS 1.2.
# (rpc/interceptors.py checks each call again, for a process that imported grpc earlier.)
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384"
# The core's own lines on stderr are not JSON; set GRPC_VERBOSITY=INFO to debug handshakes.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
