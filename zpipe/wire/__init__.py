"""The wire, version 1: what one node may send another, byte for byte. This text is the specification.

**Planes.** *Data*: PUSH to a bound PULL, one PUSH per neighbour; carries Task and Blocked, in order, so that a Blocked
tells the receiver which of the numbers before it were lost. *Control*: DEALER to a bound ROUTER; carries all else, both
ways. A node ignores a kind that came on the other plane (`DATA_PLANE` names the two).

**Frames.** A message is a header frame, and for Task one buffer frame.

    header   msgpack array of the fields below (fixarray, so byte 1 is the version), then 8 bytes checksum
    buffer   the rows' tensors `[rows, *shape]`, C order, little-endian, no padding; or what a codec made of them
    checksum XXH3-64 (canonical, big-endian) of the array's bytes; with a buffer: XXH3-64 of the buffer, seeded with the
             XXH3-64 of the array's bytes. It finds damage; it is no protection against a forger (that is CURVE's part).

**Fields.** Every header begins `[version=1, kind, sender]`; `sender` is a rank, or -1 for an observer, which may send
only Hello, Ping, StatsRequest and Bye. Integers are 0 .. 2**63-1 and floats finite and >= 0 unless said. `[x]` is an
array. The header holds no maps and no extension types; the two documents are JSON objects in a bin (UTF-8, no NaN, no
infinity, 16 levels at most), since a JSON decoder allocates by what is there and not by what is claimed.

    kind              plane    fields after sender
    ----------------  -------  --------------------------------------------------------------------------------------
     1 Hello          control  role, session, epoch, wire_version, bundle_digest, topology_digest, topology (document)
     2 Refused        control  key, here, there
     3 Task           data     epoch, codec, stage, [task row]                                             + buffer
     4 Credit         control  epoch, expected, [expected - held number], limit, [stage, slots, ...], holding_seconds,
                               [expected - missed number] | [class, slots, ...]
     5 Blocked        data     epoch, next_number
     6 Report         control  input_length, output_length, [stage, service_seconds, ...], [stage, backlog_seconds, ...],
                               accepting (bool) | [class, ahead_seconds, ...], [class, usage, ...],
                               [class, withheld, ...], [source, rate up to here, rate from here on, ...]
     7 Lost           control  [lost row]
     8 Result         control  [result row]
     9 Ping           control  token, echo (bool), padding (bin)
    10 StatsRequest   control  token
    11 Stats          control  token, body (document)
    12 Bye            control  reason

    task row          number, source, session, sample, attempt, part, priority, oldest, budget_us, age_us, weight,
                      queued_seconds, service_seconds, [threshold] ||| yielded_seconds
    lost row          source, session, sample, attempt, cause, shut_out_by || part
    result row        source, session, sample, attempt, part, exit_stage, label, hops, confidence, queued_seconds,
                      service_seconds ||| yielded_seconds || scores (bin)

- a priority is a class, 0 to 255.
- role is `peer`, `source` or `observer`; digests are strings; attempt counts from 1; stages are those of the bundle.
- the topology of a Hello may hold `shared_memory` beside the topology's own keys: text of 240 characters at most, an invitation to
  share memory with the sender, or the answer to one (`zpipe.transport.shared` says how the buffers of Tasks travel then). It is
  part of no digest, and who does not know it passes over it.
- budget_us is the time left when the message arrives, -1 without a deadline; age_us the time since submit(). Clocks are
  not shared, so the sender takes half the measured round trip from the one and adds it to the other. Either is 2**53 at
  most, 285 years; what is longer is sent as that.
- thresholds are for the exits of stage, stage+1 ..., none for the last stage alone; at most one per stage.
- confidence is the gate's float32, carried exactly as float64; a rounding error (0.001) outside 0..1 passes.
- strings are UTF-8, in the documents too: a lone surrogate, escaped or not, is no text. Those that people are shown (key, here,
  there, cause, reason) the receiver takes in as one line of 240 characters, whatever does not print escaped (`one_line`).
- what stands behind a `|` is there, all of it, where samples are of several classes, else absent. A class is 0 to 255; withheld
  is a set of stages as bits, stage 0 the lowest.
- what stands behind a `||` is there where students share a sample: scores with each result, `[classes] float32`, little-endian, 4
  bytes for each of the bundle's classes and of any value; part, in a lost row, where it is not 0. In a chain both are absent.
- what stands behind a `|||` is there where a sample had to wait for lower classes, before what stands behind a `||`: of its
  queued_seconds, for how long; no more than those, and not 0.
- holding_seconds is -1.0 when the receiver does not say.
- label is one of the bundle's classes.
- codec `none` is the stage's input itself. Of any other codec both ends know, from the bundle, one size of a row per stage: the
  buffer is `rows` times that, or, of a *packed* codec, 1 byte to that many. What the bytes mean is the codec's
  (`zpipe.codecs`); the receiver undoes it before it looks at a row, and drops the message where it cannot.
- padding is for measuring how fast bytes arrive: `WireLimits.max_document_bytes` at most, of no meaning, never sent back.
- rows are 1 .. `WireLimits.max_rows` in Task, 1 .. `WireLimits.max_entries` in Lost and Result. A header is
  `WireLimits.max_header_bytes` at most, so rows with long causes go in several messages.
- Hello travels in version 1 whatever its wire_version field asks for, so that a mismatch can be refused in words.

Nothing is ever unpickled, and `decode` raises WireError, and nothing else, on every byte string not described here.
"""

from zpipe.model import NO_CODEC
from zpipe.wire.decoder import decode
from zpipe.wire.encoder import encode
from zpipe.wire.limits import WireLimits
from zpipe.wire.messages import (
    DATA_PLANE,
    NO_RANK,
    WIRE_VERSION,
    Blocked,
    Bye,
    CreditUpdate,
    Hello,
    Lost,
    Message,
    Ping,
    Refused,
    ReportUpdate,
    Results,
    Role,
    Stats,
    StatsRequest,
    TaskBatch,
)

__all__ = [
    "DATA_PLANE",
    "NO_CODEC",
    "NO_RANK",
    "WIRE_VERSION",
    "Blocked",
    "Bye",
    "CreditUpdate",
    "Hello",
    "Lost",
    "Message",
    "Ping",
    "Refused",
    "ReportUpdate",
    "Results",
    "Role",
    "Stats",
    "StatsRequest",
    "TaskBatch",
    "WireLimits",
    "decode",
    "encode",
]
