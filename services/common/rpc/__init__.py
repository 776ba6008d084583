"""gRPC as every service uses it: servers, channels, errors, interceptors and duplex streams."""
