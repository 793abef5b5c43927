"""The start of the service on Ray Serve, on this machine or on a cluster."""
