"""The command `halotile`: a module for each group of commands, imported when one of the group is called."""
