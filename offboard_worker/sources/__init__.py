"""Sources: channels by which identity providers tell us who left. Plugins, independent of one another."""
