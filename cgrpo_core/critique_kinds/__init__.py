"""One file a kind of critique, named after it, with its wording and its version: each defines KIND."""
