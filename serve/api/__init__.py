"""The HTTP interface: routes, what stands before them, and errors as problem documents."""
