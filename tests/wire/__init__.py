"""The codec: round trips, refusals, golden bytes."""
