"""How a service is started, kept and stopped. Knows the parts only by their protocols."""
