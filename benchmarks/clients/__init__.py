"""One file a client, with one class `Bench`."""
