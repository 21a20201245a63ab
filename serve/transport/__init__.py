"""The connections between the gateway and the replicas: how a request reaches an engine and its response comes back.

In the order in which a request meets them:

- `pool`: the replicas of one deployment as the gateway sees them; picks the least busy one, retries once.
- `gateway_end`, `replica_end`: the two ends of a connection, on which all requests to a replica share one socket.
- `tls`: the encryption between the two, where Ray encrypts too.
- `frames`: the encoding on the socket.
- `messages`: the types that travel, and the protocol that every model of a replica implements.
"""
