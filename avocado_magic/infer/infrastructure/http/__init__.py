"""HTTP/1.1 for the event loop, server and client: a library of its own, which imports nothing of ours."""
