"""`python -m bench report`: everything the machine can run, against its own ceilings, in one process."""
