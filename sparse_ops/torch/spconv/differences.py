"""What of spconv 2.3.8 is left out here, and what is meant to differ. Names are those of `spconv.pytorch` and its modules."""

LEFT_OUT: dict[str, str] = {}
DIFFERENCES: tuple[str, ...] = ()
