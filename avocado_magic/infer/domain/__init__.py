"""Value types, rules and ports of the gateway; standard library only."""
