"""The protocol, decided without IO: `NodePolicy.handle(event, now=...) -> [command, ...]`.

The live runtime and the simulator drive the same objects, so a figure from one speaks about the other. Nothing here reads
a clock, a socket or a random source; time and `rng` are arguments, payloads are named by a token. Code and tests cite the
rules below by their numbers.

**S. Samples and tasks**
  S1. A sample is named by (source rank, source session, number). Sessions of a source grow; numbers of each start count from 0.
  S2. A task is a sample waiting for a stage. A node holds at most one task per sample and part: of two attempts that meet,
      the one at the later stage stays and takes the higher attempt number; the other's slot is free at once.
  S3. A task leaves a node only after a stage ran on it, so it makes at most K-1 hops and cannot ping-pong. (A source may
      send raw inputs on, lane 0, where it hosts no stage 0 or the topology says `offload_input`. With that, whoever hosts stage 0
      may pass them on, always to a node farther from their source.)
  S4. A task exits when its stage's gate says so, or after the last stage. The policy writes the gate (rule, temperature, one
      threshold per row); the executor evaluates it; the policy takes the answer as given.
  S5. Every task row tells the source's lowest open number, `oldest`. Tasks past their deadline, and those which by what came over
      the same link are below `oldest` or of an older session, are dropped where they are met: nobody waits for them. What a link
      said of a source is forgotten when the last deadline heard of has passed, or a minute after its last task. A task that
      comes and is dropped as old is told to its source (Lost, with the session that shuts it out): one that still waits for it
      was started again with an earlier clock, or somebody lied about it, and goes on under a session later than that one.

**L. Links**
  L1. A link has a direction, sender to receiver, and an epoch: new on every connection, never used again. Frames of another
      epoch are dropped; a second PeerUp of the standing epoch changes nothing.
  L2. The sender numbers its tasks 0, 1, 2, ... in each epoch; a connection delivers in order, so a number not above the
      highest seen is a repeat and is dropped, and a gap is a loss.
  L3. A link's *lanes* are the stages its sender may send over it: those the receiver hosts whose predecessor the sender hosts.

**C. Credit**
  C1. Each direction of a link owns `window` slots at its receiver. A task holds one from acceptance until it exits, fails, is
      dropped, or is sent on: input queue, executor and output queue cost no second one. Samples of this node's own hold
      slots of their own (`own_slots`), never a link's.
  C2. One slot per lane is reserved, the rest is shared: a sender may send on lane s when its number is below the limit and
      either nothing of lane s is outstanding or less than `window - lanes` shared slots are taken (tasks after the first
      of each lane). Since stages only rise and the last always drains, no circle of waiting closes.
  C3. Credit is absolute: (epoch, expected, held, limit, carried), where limit = expected + free slots. A gap costs nothing, a
      repeated or lost Credit does no harm. The sender forgets every number below `expected` that is not in `held`.
  C4. After a reconnection the receiver still holds tasks of earlier epochs; they keep their slots and are told as
      `carried` per lane, so that C2 stays true.
  C5. Credit is sent when a quarter of the window came free, when a lane's last task went while the shared slots are full
      (nothing else would let that lane send), and at the latest with the next report.
  C6. A sender with something to send and no credit for one report interval, or with a task whose arrival a Credit should have
      told by now, sends Blocked(next number) *behind its tasks*, on the data plane: whatever it had sent before has arrived or is
      lost, so the receiver closes the gap and answers with Credit. (On the control plane it could overtake tasks on their way.)
  C7. Credit also names the latest numbers that never arrived (`missed`); their sender tells their source at once (R1).
  C8. Where A7 orders and there are several classes, Credit says per class, but for the highest, how many tasks of it and of those
      below may hold a slot (`clear`): clear to compute, granted for a class. A node shares one pool of such slots among the links
      that use it, so two nodes never fill a third at once, and the rest of each window is the highest class's. The slot that C2
      reserves for every lane is anybody's: a task on it is the request to compute, and no circle of waiting closes. Higher classes
      may keep it for ever, so what A7 owes a turn asks as well, one on a link at a time.

**D. Delivery at the source**
  D1. Every submitted sample ends in exactly one outcome: result, rejected, expired or failed.
  D2. The source keeps the input until then. The first result of any attempt counts, later ones are `second results`.
  D3. Only the source's timer decides `expired`.
  D4. New samples wait in a bounded room until the admission strategy and an own slot let them in. A full room rejects: the
      newcomer (`block`, whose callers wait outside; `deadline`) or the oldest waiting (`latest`). `deadline` also
      rejects what by the forecast (zpipe.policy.forecast) cannot make it, unless nothing is in flight: somebody has to measure
      that it got better.

**R. Repair**
  R1. A node that loses a neighbour tells the sources of everything that was outstanding there: Lost(sample, attempt, cause).
  R2. The source answers Lost of the current attempt by submitting the sample again, attempt + 1. Lost of another attempt, or
      while the task is held or already waits to be submitted again, changes nothing. After MAX_PROMPT_ATTEMPTS only R3 tries.
  R3. The backstop is a timer per attempt: srtt + 4 * rttvar of samples delivered by their first attempt, or twice the time the
      forecast (D4) gives what is in flight, at least 0.75 s, doubled each time it fires for a sample. What is held here or still on
      a link of this node is not lost. It stays within a budget (resubmissions <= results / 10 + 10, beyond it one a second),
      so that overload cannot feed itself.
  R4. A failed batch is run again row by row; a row that fails alone is Lost with cause `stage-failed`; at the second such
      failure the sample ends as failed.
  R5. Silence. A node at work reports every interval. A neighbour that owes a sign of life for longer (three more Reports, four
      times their lateness, what the link still carries) is *suspected*: what is outstanding there is Lost, nothing more is sent
      there; its next word ends that, and the connection stays. After `hang_seconds` it is treated as lost and its connection
      made anew; likewise when it is heard, but a Blocked is not answered: damage can leave a stream waiting for bytes without
      end. Time in which this node itself did not run does not count.
  R6. Leaving. A node that drains, or whose executor died, reports `accepting` false and grants no more credit. A draining
      one finishes and hands over what it holds; one without an executor passes on what a neighbour can run and tells Lost of
      the rest.
  R7. Bans. A neighbour that says what nobody who keeps the rules can - a Credit beyond what was sent or beyond the window, a
      result of its own (no hops) for a sample that never left this source, where nobody else may send it tasks - is banned: lost,
      and where nodes have keys never listened to again. Without keys anybody can claim a rank, so there it may connect anew. Any
      other false result is dropped and counted: the one who brings it may have it from a liar, or have run a liar's task, and a
      ban would let one liar remove the honest ones.
  R8. Answers - results and Lost - go to a neighbour nearer to their source that is up and speaks; else to one as far from it as
      this node, unless they came from such a one; else to a nearer one that is silent. While no way is up, they wait, the latest
      MOST_STRANDED of them.

**A. Queues at a node** (MDI-Exit, arXiv:2408.05247, our reading of Alg. 1-2)
  A1. I: tasks this node will run. O: tasks a neighbour will run. After stage k a task goes where the offload strategy says; a
      node that does not host k+1 has no choice. A received task enters I and runs there, but for a raw input that may go on.
  A2. Heads of O are tried lane by lane, in the order of what a link gains by them (`lane_order`). A lane without credit never holds
      up one that this node does not host; among lanes it does host the better one goes first, and none onto a link that has more
      than LINK_QUEUE_SECONDS to carry already. A frame holds a batch of one lane's tasks; where batches are smaller than
      `frame_rows`, as many as the link carries within FRAME_SECONDS, since a message costs more than a task.
  A3. A free executor with an empty I takes back a head of O whose stage it hosts: the oldest of those that no connected neighbour
      takes, else that of the lane which is worth least to a link.
  A4. The head of a lane goes to the neighbour the strategy chooses, among those that have credit, the smallest D + |I| * Gamma
      asked first; dice are thrown once per head, neighbour and Report. Where this node does not host the stage the cheapest
      takes it.
  A5. What a neighbour's load is between two Reports is estimated: as last reported, plus what was sent there and could not
      have been counted yet, less what was released since. D comes from the numbers of tasks and the Credits that name them
      (zpipe.policy.estimates). A change of |I| by more than a quarter is reported before the interval is over, by nodes
      whose strategy weighs it.
  A6. Strategies that look ahead (pa-mdi, fifo) send a task where what is left of it is done first: D + what goes before it there +
      what it takes, as if one node did all of it that it hosts. What goes before it is told by class and shrinks as time goes by.
  A7. Service order `priority`: the higher class first, in a class who came first; a batch or a frame is of one class. A lower class
      that waits is owed `min_share` of the time, of the tasks on a link, and goes next when that is enough for one. Else a link
      is given nothing of a lower class before it is done with what it has. So what a higher class waits for is at most one
      service and one frame a hop of a lower one, and `min_share`. With `ageing`, a class is worth so many seconds of waiting at a
      node: who came that much earlier goes before one of the class above, in I and O. Answers tell how long lower classes
      computed where their sample waited: that is no congestion, and no reason for its source to admit less.
  A8. Model allocation (pa-mdi): a node may withhold stages from a class where they take it much longer than at a neighbour with
      time to spare, higher classes' share of its time counted. Few stages at a time, and only those are kept away who have
      another to go to: nothing is lost by it.
  A9. Chains (ar-mdi, ms-mdi): the nodes of a chain from a source share its stages out in proportion to their measured rates, or to
      what other sources leave of them. Each tells its neighbours on the chain the sum of rates on its side; a task goes on once
      its next stage lies beyond this node's part.

**F. Students that share a sample** (RoCoIn, arXiv:2406.14185; `SourceConfig.fanout`). A *part* is a student's index; its
*replicas* are the nodes that host the student's first stage and are this source's neighbours, or the source itself; a *copy* is
a task for one part of a sample, numbered per part by `attempt`. Other nodes need no rule of their own: a copy is an ordinary
task with `part` set, and its student ends where the gate says so.
  F1. An admitted sample is one copy per part (`failover`, `hedged`), or one per replica (`all`). Copies wait in the source's
      outbox, per part, not in O: no replica and no part holds up another. A sample is let in while fewer than `own_slots`
      copies wait there and some part has a replica.
  F2. A part's first sound answer counts (D2): it brings the student's scores. With every part in, the source joins them (the
      sum and a bias, softmax at the temperature of just these parts) and the sample ends as result. It ends so, too, once
      every part that is not in is missing, and at its deadline, if one part is in; the result says which are missing. With
      none it expires, or has failed where all parts have.
  F3. A part is missing when no copy of it is out and no replica takes one: none is connected, speaks (R5) and accepts (R6).
      Nobody waits for it. If a replica comes back while the sample is open, it gets a copy.
  F4. A copy goes to a replica when that can take it: with credit (C2, C8) and no copy of this part of the sample. Of several
      it goes where it is done first, by transfer, backlog and service time; those that were given it before come behind, and
      those that are late (F5) last. The source gives itself one likewise, if it has an own slot. A copy that is Lost is
      followed by another at once, unless one is out already (R2); at the second stage failure the part is missing (R4). The
      timer is per copy, with the budget of R3.
  F5. `hedged`: a copy that is out for longer than its part's smoothed sojourn and two deviations is late, and another goes to
      a second replica, now or as soon as one can take it; the second may be late as well. A budget holds: half of the
      samples, and 10, what calm times spared is forgotten; and while first copies of that part wait for room there are no
      second ones: hedging is for late replicas, not for busy ones. A replica is late until it answers what it was late with, or
      for MIN_RETRANSMIT_SECONDS.
  F6. What is still queued at the source for a part that is in is dropped. Replicas are told nothing: what they work on comes
      as a second result, or is below `oldest` (S5).
"""

from __future__ import annotations

from zpipe.policy.node import NodePolicy

__all__ = ["NodePolicy"]
