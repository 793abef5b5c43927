"""Who may ask, from where, and which addresses the service itself may ask."""
