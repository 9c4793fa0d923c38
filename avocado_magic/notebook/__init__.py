"""What a person sees in a cell. Synchronous; imports nothing heavy before it is needed."""
