"""How a replica shares out its time: batches, admission and deadlines."""
