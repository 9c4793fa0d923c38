"""Discovery: how a service tells consumers its URL over RabbitMQ. Knows no parts and no service."""
