"""What a service is made of, each part behind the `Part` protocol of `base`."""
