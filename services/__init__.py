"""The services of Muster, each a process of its own; none imports another."""

import os

# gRPC reads these once, when it is first imported, so they are set before any module below can import it.
# Python's gRPC has no switch for the lowest TLS version. Without a pre-shared key this suite can not be
# agreed on, so that TLS 1.2 has nothing to offer and 1.3, whose suites are not configurable, remains.
# (rpc/interceptors.py checks each call again, for a process that imported grpc earlier.)
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-AES128-CBC-SHA"
# The core's own lines on stderr are not JSON; set GRPC_VERBOSITY=INFO to debug handshakes.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
