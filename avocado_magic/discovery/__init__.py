"""Discovery: how a service tells consumers its URL over RabbitMQ. Depends on nothing of ours but `errors`."""
