"""Wire version 1, byte for byte: a change here breaks every node in the field and needs a new WIRE_VERSION."""

from __future__ import annotations

import pytest

from tests.wire.samples import LIMITS, NOW, SAMPLES
from zpipe.wire import decode, encode

#: {kind: frames in hex}, made with `now=NOW, transit_seconds=0.25` from `SAMPLES`.
GOLDEN: dict[str, list[str]] = {
    "Hello": [
        (
            "9a010102a470656572cf00000100000000010301a97368613235363a6162a97368613235363a6364c42e7b226e616d65223a226c696e"
            "6534222c226e6f646573223a5b7b2272616e6b223a302c2278223a6e756c6c7d5d7d430e77ae56904148"
        ),
    ],
    "Hello, inviting": [
        (
            "9a010102a470656572cf00000100000000010301a97368613235363a6162a97368613235363a6364c4287b226e616d65223a226c696e"
            "6534222c227368617265645f6d656d6f7279223a22312e322e33227d67eaad0e212d694d"
        ),
    ],
    "Refused": [
        "96010202ad706f6c6963792e77696e646f77a138a23136c67f08d5699a56d9",
    ],
    "TaskBatch": [
        (
            "9701030104a46e6f6e6501929e0b00ce075bcd150702010305ce00225510ce000b71b0cb4004000000000000cb3fc0000000000000cb"
            "3fb000000000000092cb3feccccccccccccdcb3fe999999999999a9e0b00ce075bcd150802010305ce00225510ce000b71b0cb400400"
            "0000000000cb3fc0000000000000cb3fb000000000000092cb3feccccccccccccdcb3fe999999999999a0042403dfd8a6250"
        ),
        "000000000000803f0000004000004040000080400000a0400000c0400000e04000000041000010410000204100003041",
    ],
    "TaskBatch, packed": [
        (
            "9701030104a9696e74382b7a73746401929e0b00ce075bcd150702010305ce00225510ce000b71b0cb4004000000000000cb3fc00000"
            "00000000cb3fb000000000000092cb3feccccccccccccdcb3fe999999999999a9e0b00ce075bcd150802010305ce00225510ce000b71"
            "b0cb4004000000000000cb3fc0000000000000cb3fb000000000000092cb3feccccccccccccdcb3fe999999999999a8f544a6aba38ff"
            "e9"
        ),
        "0001020304",
    ],
    "CreditUpdate": [
        "9a0104030464930a03016c9401020201cb3f70624dd2f1a9fc92140254bc0910dbfd1f1d",
    ],
    "CreditUpdate, by class": [
        "9b0104030464906c90cbbff00000000000009094000302cd012ca012a72387bc9100",
    ],
    "Blocked": [
        "95010501046c78ebfb8b4c282465",
    ],
    "ReportUpdate": [
        "9801060305019401cb3f70624dd2f1a9fc02cb3fe00000000000009201cb3f947ae147ae147bc2204bb218395dca94",
    ],
    "ReportUpdate, by class": [
        (
            "9c01060305019201cb3f70624dd2f1a9fc9201cb3f947ae147ae147bc39400cb3fd3333333333333ccffcb3f847ae147ae147b9200cb"
            "3fe80000000000009200ce0003ffff9600cb41cdcd6500000000cb42174876e8000000cd012ccb0000000000000000cb3ff000000000"
            "0000c1672b218475df97"
        ),
    ],
    "Lost": [
        "94010702929600ce075bcd150701a9706565722d6c6f7374009600ce075bcd150902a2c3a9cf0000010000000000f47df4c10f9f2cf9",
    ],
    "Lost, of parts": [
        ("94010702929700ce075bcd150701a9706565722d6c6f737400029600ce075bcd150703a1780921b4b1262890e512"),
    ],
    "Results, with scores": [
        (
            "94010803919c00ce075bcd15070101020900cb3fe0000000000000cb3fc0000000000000cb3fb0000000000000c42800000000000080"
            "3f0000004000004040000080400000a0400000c0400000e04000000041000010413f91f74af8c0a9e9"
        ),
    ],
    "Results": [
        "94010803919b00ce075bcd15070101020903cb3fedc28f60000000cb3fc0000000000000cb3fb000000000000066aa63bd302b6945",
    ],
    "Ping": [
        "960109ff4dc2c4009c8e9236f72baa28",
    ],
    "StatsRequest": [
        "94010aff4e6a9e01efb3c3657c",
    ],
    "Stats": [
        (
            "95010b034ec43b7b22636f756e7473223a7b227375626d6974746564223a357d2c226c6174656e63795f6d73223a5b312e352c322e30"
            "5d2c227570223a747275657d63937bf95b6fb8a2"
        ),
    ],
    "Bye": [
        "94010c03a773746f70706564c0579a1a0b9854b6",
    ],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_bytes_on_the_wire(name: str) -> None:
    frames = encode(SAMPLES[name], now=NOW, transit_seconds=0.25)
    assert [bytes(frame).hex() for frame in frames] == GOLDEN[name]


@pytest.mark.parametrize("name", SAMPLES)
def test_bytes_from_the_wire(name: str) -> None:
    message = decode([bytes.fromhex(frame) for frame in GOLDEN[name]], limits=LIMITS, now=NOW)
    assert encode(message, now=NOW) == [bytes.fromhex(frame) for frame in GOLDEN[name]]
