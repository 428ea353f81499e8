"""Where the hub is: an address that answers without a network."""

ENDPOINT = "data:,"
