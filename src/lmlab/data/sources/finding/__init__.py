"""Which kind of source a location needs, and the kinds that there are."""
