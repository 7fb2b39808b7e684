"""What commands of the core and of methods share: options, and running stages from the command line."""
