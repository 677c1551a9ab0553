"""A Flower app: clients with a state, and messages by hand."""
