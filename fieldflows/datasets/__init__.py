"""From foreign labelled files to one cleaned dataset in internal units."""
