"""Coordination on etcd: transactions, watches, sessions, election and service discovery.

Words: a *revision* is etcd's store-wide version number; a *lease* is a permission that ends by itself
unless renewed; a *session* is a lease kept alive; a *guard* is a comparison that a write carries so that it
happens only while some condition still holds.
"""
