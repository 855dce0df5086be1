"""What is used from outside: the command line."""
