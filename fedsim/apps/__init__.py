"""Flower apps as they are, their own ServerApp and ClientApp, on our engines."""
