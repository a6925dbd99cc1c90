"""Parts of a client, measured without sockets: one file each, with one class `Bench`."""
