"""my-app, a Flower app."""
