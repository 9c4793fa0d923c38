"""What speaks HTTP: the gate in front, the relay (pass-through) and the routers behind it."""
