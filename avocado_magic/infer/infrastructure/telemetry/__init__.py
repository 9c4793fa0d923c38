"""What operators see of the gateway: its log, and its metrics."""
