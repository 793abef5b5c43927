"""What `ray job submit` and the command `raycd` run; each file is a program of its own."""
