"""The asyncio glue: performs the policy's commands, feeds back what happened.

`driver.py` one node's loop: transport, executor, payloads around one NodePolicy. `peers.py` connections and their Hello.
`node.py` a node that serves. `pipeline.py` the source inside the caller's program (the library's face). `launch.py` the other
ranks as processes of this machine, `child.py` their side of it, `starting.py` what a pipeline's start waits for, `outcomes.py` how
its samples end.
"""
