"""The whole control plane on one machine: separate processes, mTLS, embedded etcd."""
