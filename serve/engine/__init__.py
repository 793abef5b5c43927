"""The model at work: what a bundle becomes, how it answers, and its change to another one."""
