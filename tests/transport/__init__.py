"""One contract, kept by every transport."""
