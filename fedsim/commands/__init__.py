"""The commands of the command line, thin: every one a call of the library."""
