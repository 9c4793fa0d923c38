"""What the gateway keeps: keys in files, usage in a database."""
