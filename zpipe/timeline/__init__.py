"""One timeline of the traces of all nodes, for ui.perfetto.dev or any other reader of the Trace Event Format.

Nothing is recorded for it: a trace (`zpipe.trace`) holds what a node's policy was told and answered, and the policy itself, told
again, how long its queues were, what credit it had and how its source let samples in. A node is a process of the timeline:

    samples                 at a source: submit and outcome of each sample
    sample: result          a slice per sample from the one to the other; likewise `rejected`, `expired`, `failed`
    stages                  a slice per batch, from when the executor turned to it
    no credit of node N     a slice while a task waited for that alone
    waiting to run, waiting to be sent     a slice per task that does
    to node N               a slice per frame on its way, from one node's clock to the other's
    notes                   an instant for what is rare: neighbours up and lost, failures, samples submitted again, the end
    counters                queue, credit to node N, samples, admission rate or window, operating point, outcomes

and arrows lead each sample from its submit over the batches it was in to its outcome. Clocks are brought together by the messages
between the nodes (`zpipe.timeline.clocks`). Memory: some 4 kB per sample, the file 0.2 kB.
"""

from __future__ import annotations

from zpipe.timeline.merge import Merged, merge

__all__ = ["Merged", "merge"]
