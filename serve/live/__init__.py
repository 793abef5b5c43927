"""The live gallery of a replica: where it is kept, how it is followed, written and shown."""
