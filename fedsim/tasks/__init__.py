"""What can be learned, one file per task; imports nothing."""
