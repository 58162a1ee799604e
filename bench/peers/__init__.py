"""zpipe against what a user would pick instead: the same stages in a line of four, carried by other means.

    python -m bench.peers                                   everything, about an hour
    python -m bench.peers --quick                           a few rounds of each
    python -m bench.peers --only "z,a,a'" --workload digits --mode batch-1

What all contenders share, so that nothing but the carrying differs:

1. Four processes (but (f)). Rank 0 is the source: it runs stage 0, keeps a window of 64 samples under way and takes the answers.
   Ranks 1 to 3 run the rest; the answers go straight back to rank 0.
2. The stages are run by zpipe's own executor, engine and exit gate, single-threaded, with all exits shut (`work.Stages`): the
   same work, measured inside by the same clocks (`meter`).
3. Every answer, label and confidence, is compared with what the whole network gives in one process. A wrong one, or one that
   never came, strikes the contender's figures out.
4. zpipe sends large activations through shared memory on one host, unless told not to: (z') is told, and goes by TCP as the
   hand-written loops and gRPC do.
5. A contender is the best use of its library that we know of, in one file, behind `contender.Contender`: raw bytes, FIFO order
   where the library keeps it, bounded queues.

All contenders of a workload are up, idle, at once; rounds of a second or two go from one to the next in an order that changes,
since these machines are shared. Figures are medians over rounds, ratios medians of the ratios within a round. CPU per sample is
what a busy machine changes least: where CPU is all that limits, one contender's over another's is the ratio of their throughputs.

Workloads: the stages of the digits bundle, and stages that use a fixed CPU time without holding the GIL, as an engine would, and
write an activation of a given size.
"""
