"""Tables, artifacts, the store and the ledger: what stages exchange. No torch."""
