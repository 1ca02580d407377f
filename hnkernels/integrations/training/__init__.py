"""Training that another program starts, follows and stops, in processes of its own."""
