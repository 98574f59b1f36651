"""What only CPUs need: their pipeline, and a schedule for what is not hand-written."""
