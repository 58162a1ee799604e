"""What a node tells Prometheus, and whether it is well.

`zpipe node --metrics HOST:PORT`, `--metrics` of `zpipe infer` and `zpipe bench` for their source, or beside a pipeline in your
program:

    async with zpipe.Pipeline.connect("line4.yaml") as pipeline, zpipe.MetricsServer(pipeline, "127.0.0.1:9464"):
        ...
    with zpipe.SyncPipeline.connect("line4.yaml") as pipeline, zpipe.MetricsServer(pipeline, "127.0.0.1:9464"):
        ...

`/metrics` is computed when it is asked for, from what the node counts anyway (`zpipe.runtime.stats`). `/healthz` says 200 while the
node's loop turns and its executor works: where it does not, only a restart helps. `/readyz` says 200 while samples that come here
can go on. Both tell why not.

The rules of the names, which a test holds against a live node: `zpipe_` in front, base units (seconds, bytes, hertz), `_total`
behind what only grows, and labels of few values, none of which somebody outside can invent:

    topology, rank   on everything: which network this is a node of, and which node
    peer             the rank at the other end of a link
    stage            a slice of the network, and the exit behind it
    outcome          result, rejected, expired, failed
    queue, plane, reason, table, point    lists in `zpipe.metrics.families`, and the operating points of the bundle

Who can reach the port may read all of it and change nothing; there is no key to it. It is bound to loopback where no host is named.
`zpipe.metrics.dashboard` makes the Grafana dashboard of these.
"""

from zpipe.metrics.server import MetricsServer

__all__ = ["MetricsServer"]
