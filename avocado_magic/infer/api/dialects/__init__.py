"""The APIs as they look on the wire: what a request holds, what an answer is made of, one dialect per file."""
